-- key sk_d86b3a6539300dc3_Y2SdRmfmBFQqS5f6rYhai4hFPTzxEwOlrdOH4BZg
-- succeeded 58623cd18d6b4809a51aedc8889c1171
-- failed 89d0467444d04bd2abe6409f8411b921
-- running 1ba15dd35c4b416489a8b2fa04d7c7f2
-- waiting 02cbbebd5a2c42f7940273b186f825cd
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
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
INSERT INTO "audit" VALUES(1,1.79610125521692585949e+09,'job_submitted','studio','d86b3a6539300dc3','58623cd18d6b4809a51aedc8889c1171','4896858292d048a2a73cc3af82f70262','{"model": "bytedance/latentsync", "consent": null, "options": {"seed": 7, "motion": "natural"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(2,1.7961012552322771549e+09,'job_ended','studio','d86b3a6539300dc3','58623cd18d6b4809a51aedc8889c1171','4896858292d048a2a73cc3af82f70262','{"state": "succeeded", "code": null, "consent": null, "output_sha256": null, "is_marked": null}');
INSERT INTO "audit" VALUES(3,1.79610125525129413603e+09,'job_submitted','studio','d86b3a6539300dc3','89d0467444d04bd2abe6409f8411b921','5cf51a94c34547649a497f7d5cb7ec45','{"model": "bytedance/latentsync", "consent": null, "options": {"num_inference_steps": 3, "seed": 1873254038, "motion": "natural"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(4,1.79610125526640129096e+09,'job_ended','studio','d86b3a6539300dc3','89d0467444d04bd2abe6409f8411b921','5cf51a94c34547649a497f7d5cb7ec45','{"state": "failed", "code": "face_not_found", "consent": null, "output_sha256": null, "is_marked": null}');
INSERT INTO "audit" VALUES(5,1.79610125527985501291e+09,'job_submitted','studio','d86b3a6539300dc3','1ba15dd35c4b416489a8b2fa04d7c7f2','bac35fbe8a3b41399304ca1c981155fa','{"model": "bytedance/latentsync", "consent": null, "options": {"num_inference_steps": 2, "seed": 1285226159, "motion": "natural"}, "inputs": {"video": "video", "audio": "audio"}}');
INSERT INTO "audit" VALUES(6,1.7961012552936155796e+09,'job_submitted','studio','d86b3a6539300dc3','02cbbebd5a2c42f7940273b186f825cd','50ca2902be6d4a48b379a90b63496c7d','{"model": "bytedance/latentsync", "consent": null, "options": {"guidance_scale": 1.5, "seed": 1567640446, "motion": "natural"}, "inputs": {"video": "video", "audio": "audio"}}');
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
	failure TEXT, 
	PRIMARY KEY (id), 
	CONSTRAINT one_job_per_key UNIQUE (tenant, idempotency_key)
);
INSERT INTO "jobs" VALUES('58623cd18d6b4809a51aedc8889c1171','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"seed\": 7}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"d86b3a6539300dc3","segments":[],"options":{"num_inference_steps":null,"guidance_scale":null,"seed":7,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"4896858292d048a2a73cc3af82f70262","consent":null}','bytedance/latentsync','d86b3a6539300dc3',NULL,1.79610125521692585949e+09,0,'succeeded',1,1,NULL,1.79610125522745895385e+09,1.79610125523590517045e+09,0,NULL,'{"blob": "results/58623cd18d6b4809a51aedc8889c1171.mp4", "device_s": 12.5, "media_s": 0.0, "warnings": [], "is_marked": null, "sha256": null, "sync": null, "is_nsfw": null}',NULL);
INSERT INTO "jobs" VALUES('89d0467444d04bd2abe6409f8411b921','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 3}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"d86b3a6539300dc3","segments":[],"options":{"num_inference_steps":3,"guidance_scale":null,"seed":1873254038,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"5cf51a94c34547649a497f7d5cb7ec45","consent":null}','bytedance/latentsync','d86b3a6539300dc3',NULL,1.79610125525129413603e+09,0,'failed',1,1,NULL,1.79610125526428961758e+09,1.7961012552667484283e+09,0,NULL,NULL,'{"code": "face_not_found", "message": "No face was found.", "again": false}');
INSERT INTO "jobs" VALUES('1ba15dd35c4b416489a8b2fa04d7c7f2','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 2}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"d86b3a6539300dc3","segments":[],"options":{"num_inference_steps":2,"guidance_scale":null,"seed":1285226159,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"bac35fbe8a3b41399304ca1c981155fa","consent":null}','bytedance/latentsync','d86b3a6539300dc3',NULL,1.79610125527985501291e+09,0,'running',1,1,1.79610131528859829903e+09,1.79610125528667759894e+09,NULL,0,'{"stage": "render", "done": 50, "total": 200, "per_s": 9.5}',NULL,NULL);
INSERT INTO "jobs" VALUES('02cbbebd5a2c42f7940273b186f825cd','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"guidance_scale\": 1.5}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"d86b3a6539300dc3","segments":[],"options":{"num_inference_steps":null,"guidance_scale":1.5,"seed":1567640446,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"50ca2902be6d4a48b379a90b63496c7d","consent":null}','bytedance/latentsync','d86b3a6539300dc3',NULL,1.7961012552936155796e+09,0,'waiting',0,0,NULL,NULL,NULL,0,NULL,NULL,NULL);
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
INSERT INTO "keys" VALUES('d86b3a6539300dc3','studio','fixture','5a85791fde828a17543e8da8295d43505cd32b497f1ffb448b50d01e8284b9d3','admin read run','whsec_390YlW0LyyUMmuwA2LbaaquglYV2yDA9p22RYsAIpoQ=',NULL,NULL,NULL,1.79610125510347342489e+09,NULL,NULL,1.79610125521041345594e+09);
CREATE TABLE outbox (
	id VARCHAR(32) NOT NULL, 
	job_id VARCHAR(32) NOT NULL, 
	tenant VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	due_at FLOAT, 
	tries INTEGER NOT NULL, 
	delivered_at FLOAT, 
	last_error TEXT, 
	PRIMARY KEY (id)
);
CREATE INDEX by_turn ON jobs (state, tenant, priority, created_at);
CREATE INDEX by_tenant ON jobs (tenant, created_at);
CREATE INDEX by_key ON jobs (key_id, created_at);
CREATE INDEX by_due ON outbox (due_at);
CREATE INDEX audit_by_time ON audit (at);
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
COMMIT;
