-- key sk_Ckvaxti1dFTMTI8fvXEWPKR75_hCgZFh3gQnOJDQeU8
-- succeeded b2af52bbaab20867af784e09ee45ec9b
-- failed 268d32249c38eb88609690aaaa5ef069
-- running 1eb2d97866ca55bf2783d3f02d5fd433
-- waiting 3bcde07de27f83c9e428d9a1bc177bd8
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
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
INSERT INTO "jobs" VALUES('b2af52bbaab20867af784e09ee45ec9b','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"seed\": 7}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"032865c385da6a3a","options":{"model":null,"num_inference_steps":null,"guidance_scale":null,"seed":7,"fps":null,"loop_mode":null,"face":null},"webhook_url":null,"request_id":"f13d67d431634fe2b116405d3fe3d97c"}','bytedance/latentsync','032865c385da6a3a',NULL,1796101253.10892,0,'succeeded',1,1,NULL,1.79610125311494827271e+09,1.79610125311986756329e+09,0,NULL,'{"blob": "results/b2af52bbaab20867af784e09ee45ec9b.mp4", "device_s": 12.5}',NULL);
INSERT INTO "jobs" VALUES('268d32249c38eb88609690aaaa5ef069','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 3}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"032865c385da6a3a","options":{"model":null,"num_inference_steps":3,"guidance_scale":null,"seed":213988644,"fps":null,"loop_mode":null,"face":null},"webhook_url":null,"request_id":"ec33bc9aa2ba4a9eb8c6b013c3ed47ea"}','bytedance/latentsync','032865c385da6a3a',NULL,1.79610125312321877483e+09,0,'failed',1,1,NULL,1.79610125312665605545e+09,1.79610125312870526313e+09,0,NULL,NULL,'{"code": "face_not_found", "message": "No face was found.", "again": false}');
INSERT INTO "jobs" VALUES('1eb2d97866ca55bf2783d3f02d5fd433','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 2}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"032865c385da6a3a","options":{"model":null,"num_inference_steps":2,"guidance_scale":null,"seed":1542265718,"fps":null,"loop_mode":null,"face":null},"webhook_url":null,"request_id":"a2284b342ac24a60a088ba48bc6a7b6a"}','bytedance/latentsync','032865c385da6a3a',NULL,1.79610125313197946548e+09,0,'running',1,1,1.7961013131368019581e+09,1.79610125313512206078e+09,NULL,0,'{"stage": "render", "done": 50, "total": 200, "per_s": 9.5}',NULL,NULL);
INSERT INTO "jobs" VALUES('3bcde07de27f83c9e428d9a1bc177bd8','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"guidance_scale\": 1.5}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"032865c385da6a3a","options":{"model":null,"num_inference_steps":null,"guidance_scale":1.5,"seed":1949166583,"fps":null,"loop_mode":null,"face":null},"webhook_url":null,"request_id":"20c4fa553b5f4e97b26011c5426766bd"}','bytedance/latentsync','032865c385da6a3a',NULL,1.79610125314017319677e+09,0,'waiting',0,0,NULL,NULL,NULL,0,NULL,NULL,NULL);
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
INSERT INTO "keys" VALUES('032865c385da6a3a','studio','fixture','456233a9d4abba2bdd2e86a9f201ed7b1fdde6af82a432ae8b0b5c8b22a8a146','admin read run','whsec_AFiqp7cxrjiOGiHhpohrbR67N+2TRkx+LJ7hHMik9is=',NULL,NULL,NULL,1.79610125301024651524e+09,NULL,NULL,1.79610125310505771636e+09);
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
COMMIT;
