-- key sk_46fea20fadcd91ae_DmyGRHvPD5xL1jATiG9QwYHwRyub8FXVJeAr9zu0
-- succeeded 31d871a9e5c749f6ba6d400a58714e5e
-- failed 87f71ecbb1a146baa9d48fc908e234b7
-- running ce6c5932f38e499388220a07dcbf941c
-- waiting 4ecca741e27449fdb79a1df4fe63edf1
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
INSERT INTO "jobs" VALUES('31d871a9e5c749f6ba6d400a58714e5e','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"seed\": 7}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46fea20fadcd91ae","segments":[],"options":{"num_inference_steps":null,"guidance_scale":null,"seed":7,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"3e34be0c9167483daac04cf76455d7c4"}','bytedance/latentsync','46fea20fadcd91ae',NULL,1.79610125415219211582e+09,0,'succeeded',1,1,NULL,1.79610125416077136988e+09,1.7961012541661560536e+09,0,NULL,'{"blob": "results/31d871a9e5c749f6ba6d400a58714e5e.mp4", "device_s": 12.5, "media_s": 0.0, "warnings": []}',NULL);
INSERT INTO "jobs" VALUES('87f71ecbb1a146baa9d48fc908e234b7','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 3}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46fea20fadcd91ae","segments":[],"options":{"num_inference_steps":3,"guidance_scale":null,"seed":1810274634,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"fa652ffb00d44bec9db99420a046158a"}','bytedance/latentsync','46fea20fadcd91ae',NULL,1.79610125416982126236e+09,0,'failed',1,1,NULL,1.79610125417336463932e+09,1.79610125417587018011e+09,0,NULL,NULL,'{"code": "face_not_found", "message": "No face was found.", "again": false}');
INSERT INTO "jobs" VALUES('ce6c5932f38e499388220a07dcbf941c','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"inference_steps\": 2}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46fea20fadcd91ae","segments":[],"options":{"num_inference_steps":2,"guidance_scale":null,"seed":114659827,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"fa3272b31d0c4562ae4864c04774e981"}','bytedance/latentsync','46fea20fadcd91ae',NULL,1.79610125417913651466e+09,0,'running',1,1,1.79610131418378281588e+09,1.79610125418200135228e+09,NULL,0,'{"stage": "render", "done": 50, "total": 200, "per_s": 9.5}',NULL,NULL);
INSERT INTO "jobs" VALUES('4ecca741e27449fdb79a1df4fe63edf1','studio','{"dialect":"wavespeed","said":"{\"model\": \"bytedance/latentsync\", \"input\": {\"audio\": \"https://media.example/in/voice.wav\", \"video\": \"https://media.example/in/talk.mp4\", \"guidance_scale\": 1.5}, \"base64\": false, \"base\": \"http://lipsync.example\"}","label":"bytedance/latentsync","sources":[{"name":"video","role":"video","url":"https://media.example/in/talk.mp4","blob":null,"limits":{"formats":["mp4"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}},{"name":"audio","role":"audio","url":"https://media.example/in/voice.wav","blob":null,"limits":{"formats":["mp3","aac","wav","m4a"],"max_bytes":null,"min_s":null,"max_s":null,"min_side_px":null,"max_side_px":null}}],"key_id":"46fea20fadcd91ae","segments":[],"options":{"num_inference_steps":null,"guidance_scale":1.5,"seed":1220691829,"fps":null,"max_short_side":null,"loop_mode":null,"face":null,"order":null,"motion":"natural","prompt":null},"webhook_url":null,"request_id":"1f7eef11466a44b5a6728d730d74ac84"}','bytedance/latentsync','46fea20fadcd91ae',NULL,1.79610125418772673608e+09,0,'waiting',0,0,NULL,NULL,NULL,0,NULL,NULL,NULL);
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
INSERT INTO "keys" VALUES('46fea20fadcd91ae','studio','fixture','468f95d0abb63b7cde043d6b623d3247eb8209d86aeeb02fd7acc9cab2a624d7','admin read run','whsec_GqFehXYcaNXEexsHV/gly4yhtBLo4kdRybnx97fSkvg=',NULL,NULL,NULL,1.79610125403609418867e+09,NULL,NULL,1.79610125414722609517e+09);
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
