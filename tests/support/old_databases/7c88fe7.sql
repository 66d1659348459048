-- key sk_46d7d08a9280bf48_hMlJkyJ5iVr4nlwrtjmYJ5HPArYfCjkakdpKLXMl
-- succeeded 10958df9528a495f86adc50a509dbfc6
-- failed a7352497f21a459c979e26f08294e52e
-- running 931a29a790df40fda93d765999def844
-- waiting 81774b936ea643019e6f900cced0d95b
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	event VARCHAR(32) NOT NULL, 
	tenant VARCHAR(64), 
	key_id VARCHAR(16), 
	job_id VARCHAR(32), 
	request_id VARCHAR(64), 
	facts TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,1.79610145347367620473e+09,'job_submitted','studio','46d7d08a9280bf48','10958df9528a495f86adc50a509dbfc6','004545f8c9fb4255b1c78eaeb4eaa2ed','{"model": "bytedance/latentsync", "consent": null, "options": {"seed": 7, "motion": "natural", "preset": "default"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(2,1.79610145348960304262e+09,'job_ended','studio','46d7d08a9280bf48','10958df9528a495f86adc50a509dbfc6','004545f8c9fb4255b1c78eaeb4eaa2ed','{"state": "succeeded", "code": null, "consent": null, "output_sha256": null, "is_marked": null}');
INSERT INTO "audit" VALUES(3,1.79610145351012349132e+09,'job_submitted','studio','46d7d08a9280bf48','a7352497f21a459c979e26f08294e52e','762e4f944749415bad1befdd37bc6a13','{"model": "bytedance/latentsync", "consent": null, "options": {"num_inference_steps": 3, "seed": 655198379, "motion": "natural", "preset": "default"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(4,1.79610145352851843835e+09,'job_ended','studio','46d7d08a9280bf48','a7352497f21a459c979e26f08294e52e','762e4f944749415bad1befdd37bc6a13','{"state": "failed", "code": "face_not_found", "consent": null, "output_sha256": null, "is_marked": null}');
INSERT INTO "audit" VALUES(5,1.79610145354501390458e+09,'job_submitted','studio','46d7d08a9280bf48','931a29a790df40fda93d765999def844','cc4af34f25d8487695ecdca7a3f15b49','{"model": "bytedance/latentsync", "consent": null, "options": {"num_inference_steps": 2, "seed": 905378219, "motion": "natural", "preset": "default"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(6,1796101453.56715,'job_submitted','studio','46d7d08a9280bf48','81774b936ea643019e6f900cced0d95b','fff67baca6c1405ba0b333071c454e11','{"model": "bytedance/latentsync", "consent": null, "options": {"guidance_scale": 1.5, "seed": 2025901040, "motion": "natural", "preset": "default"}, "inputs": {"video": "video", "audio": "audio"}}');
CREATE TABLE batches (
	id VARCHAR(32) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	key_id VARCHAR(16) NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	said TEXT NOT NULL, 
	idempotency_key VARCHAR(200), 
	created_at FLOAT NOT NULL, 
	total INTEGER NOT NULL, 
	unfinished INTEGER NOT NULL, 
	webhook_url TEXT, 
	finished_at FLOAT, 
	PRIMARY KEY (id), 
	CONSTRAINT one_batch_per_key UNIQUE (tenant, idempotency_key)
);
CREATE TABLE jobs (
	id VARCHAR(32) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	request TEXT NOT NULL, 
	label VARCHAR(200) NOT NULL, 
	key_id VARCHAR(16) NOT NULL, 
	idempotency_key VARCHAR(200), 
	created_at FLOAT NOT NULL, 
	priority INTEGER NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	fence INTEGER NOT NULL, 
	attempts INTEGER NOT NULL, 
	lease_until FLOAT, 
	started_at FLOAT, 
	finished_at FLOAT, 
	cancel_asked BOOLEAN NOT NULL, 
	progress TEXT, 
	output TEXT, 
	failure TEXT, batch_id VARCHAR(32), batch_row INTEGER, 
	PRIMARY KEY (id), 
	CONSTRAINT one_job_per_key UNIQUE (tenant, idempotency_key)
);
INSERT INTO "jobs" VALUES('10958df9528a495f86adc50a509dbfc6','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"seed\": 7}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46d7d08a9280bf48","segments":[],"options":{"num_inference_steps":null,"guidance_scale":null,"seed":7,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","preset":"default","prompt":null},"webhook_url":null,"request_id":"004545f8c9fb4255b1c78eaeb4eaa2ed","consent":null}','bytedance/latentsync','46d7d08a9280bf48',NULL,1.79610145347367620473e+09,0,'succeeded',1,1,NULL,1.79610145348480772968e+09,1.79610145349019312862e+09,0,NULL,'{"blob": "results/10958df9528a495f86adc50a509dbfc6.mp4", "device_s": 12.5, "media_s": 0.0, "warnings": [], "is_marked": null, "sha256": null, "sync": null, "is_nsfw": null}',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('a7352497f21a459c979e26f08294e52e','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 3}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46d7d08a9280bf48","segments":[],"options":{"num_inference_steps":3,"guidance_scale":null,"seed":655198379,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","preset":"default","prompt":null},"webhook_url":null,"request_id":"762e4f944749415bad1befdd37bc6a13","consent":null}','bytedance/latentsync','46d7d08a9280bf48',NULL,1.79610145351012349132e+09,0,'failed',1,1,NULL,1.79610145352427077298e+09,1.79610145352896714214e+09,0,NULL,NULL,'{"code": "face_not_found", "message": "No face was found.", "again": false}',NULL,NULL);
INSERT INTO "jobs" VALUES('931a29a790df40fda93d765999def844','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 2}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46d7d08a9280bf48","segments":[],"options":{"num_inference_steps":2,"guidance_scale":null,"seed":905378219,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","preset":"default","prompt":null},"webhook_url":null,"request_id":"cc4af34f25d8487695ecdca7a3f15b49","consent":null}','bytedance/latentsync','46d7d08a9280bf48',NULL,1.79610145354501390458e+09,0,'running',1,1,1.79610151355033850675e+09,1.79610145354855799681e+09,NULL,0,'{"stage": "render", "done": 50, "total": 200, "per_s": 9.5}',NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('81774b936ea643019e6f900cced0d95b','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"guidance_scale\": 1.5}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46d7d08a9280bf48","segments":[],"options":{"num_inference_steps":null,"guidance_scale":1.5,"seed":2025901040,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","preset":"default","prompt":null},"webhook_url":null,"request_id":"fff67baca6c1405ba0b333071c454e11","consent":null}','bytedance/latentsync','46d7d08a9280bf48',NULL,1796101453.56715,0,'waiting',0,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE keys (
	id VARCHAR(16) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scopes VARCHAR(100) NOT NULL, 
	webhook_secret VARCHAR(100) NOT NULL, 
	requests_per_minute INTEGER, 
	max_active_jobs INTEGER, 
	max_jobs_per_day INTEGER, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	revoked_at FLOAT, 
	last_used_at FLOAT, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
INSERT INTO "keys" VALUES('46d7d08a9280bf48','studio','fixture','4f5626186be89b9c912d0884cd73b0705aa91e7aed391a6f5e21a1504a1fbd23','admin read run','whsec_q6PLZUrUE6cBA6zGRNpuP3dlfAvGYTAXCAMMyocXdxQ=',NULL,NULL,NULL,1.79610145334079694743e+09,NULL,NULL,1.79610145346951055522e+09);
CREATE TABLE "outbox" (
	id VARCHAR(32) NOT NULL, 
	job_id VARCHAR(32), 
	tenant VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	due_at FLOAT, 
	tries INTEGER NOT NULL, 
	delivered_at FLOAT, 
	last_error TEXT, 
	batch_id VARCHAR(32), 
	PRIMARY KEY (id)
);
CREATE TABLE segments (
	job_id VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	"key" VARCHAR(32) NOT NULL, 
	fits VARCHAR(32) NOT NULL, 
	frames INTEGER NOT NULL, 
	frames_done INTEGER NOT NULL, 
	is_done BOOLEAN NOT NULL, 
	claims INTEGER NOT NULL, 
	lease_until FLOAT, 
	helper_s FLOAT NOT NULL, 
	PRIMARY KEY (job_id, number)
);
CREATE TABLE workers (
	process VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	machine VARCHAR(255) NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	model VARCHAR(100) NOT NULL, 
	condition VARCHAR(16) NOT NULL, 
	starts INTEGER NOT NULL, 
	seen_at FLOAT NOT NULL, 
	PRIMARY KEY (process, number)
);
CREATE INDEX by_turn ON jobs (state, tenant, priority, created_at);
CREATE INDEX by_tenant ON jobs (tenant, created_at);
CREATE INDEX by_key ON jobs (key_id, created_at);
CREATE INDEX audit_by_time ON audit (at);
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE INDEX batches_by_tenant ON batches (tenant, created_at);
CREATE INDEX by_batch ON jobs (batch_id, batch_row);
CREATE INDEX by_due ON outbox (due_at);
CREATE INDEX by_need ON segments (job_id, is_done, number);
CREATE INDEX by_lease ON segments (lease_until);
CREATE INDEX by_start ON jobs (tenant, started_at);
COMMIT;
