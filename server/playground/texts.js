// All texts of the page: [English, 中文]. {name} is replaced by a value.

const TEXTS = {
  "skip": ["Skip to content", "跳到主要内容"],
  "nav.label": ["Pages", "页面"],
  "nav.create": ["Create", "创作"],
  "nav.jobs": ["Jobs", "任务"],
  "nav.keys": ["Keys", "密钥"],
  "nav.health": ["Status", "状态"],
  "bar.language": ["中文", "English"],
  "bar.theme": ["Switch between light and dark", "切换浅色或深色"],
  "bar.leave": ["Sign out", "退出登录"],
  "foot": ["Your files stay on this server.", "你的文件始终保存在这台服务器上。"],
  "foot.api": ["API reference (OpenAPI)", "API 文档（OpenAPI）"],

  "enter.title": ["Make a face speak your words", "让画面中的人说出你的台词"],
  "enter.words": ["Upload a video and a voice recording. You get the same video, with lips that match the recording. Everything runs on this server.", "上传一段视频和一段录音，即可得到口型与录音一致的视频。所有处理都在这台服务器上完成。"],
  "enter.key": ["API key", "API 密钥"],
  "enter.hint": ["The server prints a key at its first start. The key stays in this tab until you close it.", "服务器首次启动时会显示一个密钥。密钥只保存在当前标签页，关闭后自动清除。"],
  "enter.go": ["Sign in", "登录"],
  "enter.wrong": ["This key is not valid. Check it, or ask the operator of the server for a new one.", "密钥无效。请检查输入，或向管理员申请新的密钥。"],
  "enter.noread": ["This key cannot be used here: it lacks the scope read. Use a key that has it.", "此密钥缺少 read 权限，无法登录。请使用具有该权限的密钥。"],
  "enter.empty": ["Enter your API key.", "请输入 API 密钥。"],

  "optional": ["Optional", "可选"],
  "range": ["{low} to {high}.", "{low} 到 {high}。"],

  "error.unreachable": ["The server does not answer. Check that it is running and that you can reach it from your network.", "服务器没有响应。请确认服务器正在运行，且你的网络可以访问它。"],
  "error.again": ["Try again", "重试"],

  "create.title": ["Create a video", "制作视频"],
  "create.words": ["Add a video or a portrait, and the audio it should speak. You can watch the result while it renders.", "添加视频或人像，再添加要说的音频。生成过程中即可观看结果。"],
  "create.kind": ["Source", "素材类型"],
  "kind.video": ["A video", "视频"],
  "kind.image": ["A portrait", "人像"],
  "kind.several": ["Two speakers", "双人对话"],
  "kind.video.words": ["Give a person in a video new words", "为视频中的人物更换台词"],
  "kind.image.words": ["Make a still image speak", "让静态图片开口说话"],
  "kind.several.words": ["Two people in one video or image", "同一视频或图片中的两个人"],
  "media.video": ["Video", "视频"],
  "media.image": ["Portrait", "人像"],
  "media.audio": ["Audio", "音频"],
  "media.left_audio": ["Audio of the person on the left", "左侧人物的音频"],
  "media.right_audio": ["Audio of the person on the right", "右侧人物的音频"],
  "media.mask_image": ["Mask: white where the frame may change", "蒙版：白色区域允许修改"],
  "media.drop": ["Drop a file here, or choose one", "将文件拖到此处，或点击选择"],
  "media.record": ["Record", "录制"],
  "media.stop": ["Stop recording", "停止录制"],
  "media.discard": ["Discard", "放弃"],
  "media.recording": ["Recording: {seconds} s", "正在录制：{seconds} 秒"],
  "media.norecord": ["The browser does not allow recording: {why}", "浏览器不允许录制：{why}"],
  "media.remove": ["Remove {what}", "移除{what}"],
  "media.unseen": ["your browser cannot play this file, but the server may be able to read it", "浏览器无法播放此文件，但服务器可能可以读取"],
  "media.kept": ["File of the earlier job", "沿用之前任务的文件"],
  "media.anything": ["Common formats, up to {size}", "支持常见格式，最大 {size}"],
  "media.upto": ["{formats}, up to {size}", "{formats}，最大 {size}"],
  "media.lasting": ["{low} to {high} s", "{low}–{high} 秒"],
  "media.sides": ["each side {low} to {high} pixels", "每边 {low}–{high} 像素"],
  "refuse.missing": ["Add a file.", "请添加文件。"],
  "refuse.empty": ["This file is empty. It may not have been copied completely: export it again.", "文件为空，可能未复制完整，请重新导出。"],
  "refuse.kind": ["This is not a readable {what} file. Choose another file.", "这不是可识别的{what}文件，请选择其他文件。"],
  "refuse.format": ["This is a {format} file. The model accepts {formats}.", "这是 {format} 文件，该模型支持 {formats}。"],
  "refuse.bytes": ["This file has {size}. The limit is {limit}.", "文件大小为 {size}，超过上限 {limit}。"],
  "refuse.duration": ["This file is {seconds} s long. The model accepts {low} to {high} s.", "文件时长为 {seconds} 秒，该模型支持 {low}–{high} 秒。"],
  "refuse.pixels": ["This has {width} × {height} pixels. Each side must have {low} to {high} pixels.", "尺寸为 {width} × {height} 像素，每边须为 {low}–{high} 像素。"],
  "refuse.resolution": ["This has {width} × {height} pixels. The model accepts {sides}.", "尺寸为 {width} × {height} 像素，该模型仅支持 {sides}。"],
  "refuse.range": ["Enter a value from {low} to {high}.", "请输入 {low} 到 {high} 之间的值。"],
  "refuse.integer": ["Enter a whole number.", "请输入整数。"],
  "create.model": ["Model", "模型"],
  "create.options": ["Options", "选项"],
  "create.title.label": ["Name", "名称"],
  "create.title.hint": ["Shown in the list of jobs", "显示在任务列表中"],
  "create.default": ["Default", "默认"],
  "create.doneby": ["Rendered by this server's model {model}.", "由此服务器的模型 {model} 生成。"],
  "create.go": ["Create video", "生成视频"],
  "create.check": ["Some fields are missing or not valid. See the marked ones.", "部分内容缺失或不符合要求，请检查已标出的项目。"],
  "create.uploading": ["Uploading {what}: {percent} %", "正在上传{what}：{percent}%"],
  "create.stop": ["Stop", "停止"],
  "create.consent": ["Use this only with the consent of the person shown.", "使用前，请取得画面中人物的同意。"],
  "create.again": ["The files and options are those of the earlier job. Change what you want.", "已填入之前任务的文件和选项，可按需修改。"],
  "create.norun": ["This key cannot create jobs: it lacks the scope run.", "此密钥缺少 run 权限，无法创建任务。"],
  "option.guidance_scale": ["Guidance scale", "引导强度"],
  "option.inference_steps": ["Denoising steps", "去噪步数"],
  "option.seed": ["Seed", "随机种子"],
  "option.loop_mode": ["If the audio is longer", "音频较长时"],
  "option.face": ["Who speaks", "谁在说话"],
  "option.fps": ["Frame rate", "帧率"],
  "option.resolution": ["Largest short side", "最大短边"],
  "option.order": ["Order of speakers", "说话顺序"],
  "option.motion": ["Head motion", "头部动作"],
  "option.preset": ["Speed", "速度"],
  "option.prompt": ["Prompt", "提示词"],
  "option.video_codec": ["Video codec", "视频编码"],
  "option.hdr": ["HDR video", "HDR 视频"],
  "option.consent": ["Consent", "肖像授权"],
  "about.model.tiny": ["It works with drawn presenters only, not with real people.", "该模型只支持手绘人物，不支持真人。"],
  "about.guidance_scale": ["Higher values follow the audio more closely.", "数值越高，口型越贴近音频。"],
  "about.inference_steps": ["More steps give finer detail and take longer.", "步数越多，细节越好，耗时越长。"],
  "about.seed": ["The same seed gives the same video. -1: random.", "种子相同，结果相同。-1 表示随机。"],
  "about.loop_mode": ["Play the video back and forth, or start it again.", "往返播放视频，或从头循环。"],
  "about.face": ["largest, left, right, a number, or X,Y@SECONDS.", "largest、left、right、编号，或 X,Y@秒数。"],
  "about.fps": ["Empty: as in the source.", "留空：与原视频一致。"],
  "about.resolution": ["Larger videos are scaled down; smaller ones are not scaled up.", "较大的视频会缩小，较小的视频不会放大。"],
  "about.order": ["Both at the same time, or one after the other.", "两人同时说话，或先后说话。"],
  "about.motion": ["No motion, small natural movements, or generated motion.", "静止、自然的轻微动作，或由模型生成的动作。"],
  "about.preset": ["Faster presets trade some fidelity for speed. They affect LatentSync models, not tiny.", "更快的预设会牺牲部分还原度。仅对 LatentSync 模型有效，对 tiny 无效。"],
  "about.prompt": ["Used only with generated motion.", "仅在动作由模型生成时使用。"],
  "about.video_codec": ["H.264 plays everywhere. HEVC Main 10 keeps 10 bits.", "H.264 兼容性最好；HEVC Main 10 保留 10 位色深。"],
  "about.hdr": ["HDR (PQ, HLG) is converted to SDR, or refused.", "HDR（PQ、HLG）会转换为 SDR，或拒绝处理。"],
  "about.consent": ["Number or link of the consent of the person shown, for the audit log.", "画面中人物授权文件的编号或链接，会写入审计日志。"],
  "value.h264": ["H.264, 8 bits", "H.264，8 位"],
  "value.hevc10": ["HEVC Main 10", "HEVC Main 10"],
  "value.tonemap": ["Convert to SDR", "转换为 SDR"],
  "value.refuse": ["Refuse", "拒绝"],
  "value.still": ["None", "静止"],
  "value.natural": ["Natural", "自然"],
  "value.generated": ["Generated", "模型生成"],
  "value.default": ["Best quality", "最佳质量"],
  "value.fast": ["Fast", "较快"],
  "value.fastest": ["Fastest", "最快"],
  "value.pingpong": ["Back and forth", "往返播放"],
  "value.loop": ["Start again", "从头循环"],
  "value.meanwhile": ["At the same time", "同时"],
  "value.left_right": ["Left, then right", "先左后右"],
  "value.right_left": ["Right, then left", "先右后左"],

  "state.waiting": ["Waiting", "排队中"],
  "state.running": ["Rendering", "生成中"],
  "state.succeeded": ["Done", "已完成"],
  "state.failed": ["Failed", "失败"],
  "state.cancelled": ["Cancelled", "已取消"],
  "state.stopping": ["Stopping", "正在停止"],
  "stage.wait": ["Queue", "排队"],
  "stage.motion": ["Motion", "动作"],
  "stage.faces": ["Faces", "人脸"],
  "stage.audio": ["Audio", "音频"],
  "stage.render": ["Lips", "口型"],
  "stage.assemble": ["Video", "合成"],
  "watch.stages": ["Steps", "步骤"],
  "watch.next": ["Your job is next.", "即将开始。"],
  "watch.behind": ["Your jobs before it: {count}.", "前面还有你的 {count} 个任务。"],
  "watch.starts": ["It starts at about {time}.", "预计 {time} 开始。"],
  "watch.prepare": ["A worker is preparing the job.", "正在准备任务。"],
  "watch.doing.motion": ["Animating the portrait", "正在生成人像动作"],
  "watch.doing.faces": ["Detecting faces", "正在检测人脸"],
  "watch.doing.audio": ["Analysing the audio", "正在分析音频"],
  "watch.doing.render": ["Rendering the lips", "正在生成口型"],
  "watch.doing.assemble": ["Assembling the video", "正在合成视频"],
  "watch.frames": ["{done} of {total} frames", "{done} / {total} 帧"],
  "watch.speed": ["{speed} frames per second", "每秒 {speed} 帧"],
  "watch.left": ["about {time} left", "大约还需 {time}"],
  "watch.bar": ["Progress", "进度"],
  "watch.soon": ["The first seconds appear here as soon as they are rendered.", "前几秒生成后会立即在此播放。"],
  "watch.preview": ["{seconds} s are ready to watch", "已有 {seconds} 秒可观看"],
  "watch.nopreview": ["Your browser cannot play the video while it renders. You can watch it when the job is done.", "浏览器不支持边生成边播放，任务完成后即可观看。"],
  "watch.lost": ["The connection to the server is lost. Reconnecting …", "与服务器的连接已断开，正在重新连接……"],
  "watch.cancel": ["Cancel", "取消"],
  "watch.warned": ["An earlier attempt was interrupted. The job resumed after its finished parts.", "上一次处理被中断，已从完成的部分继续。"],
  "job.video": ["Preview", "预览"],
  "job.gone": ["This job does not exist", "任务不存在"],
  "job.gone.words": ["It was deleted, or it belongs to another tenant.", "任务已被删除，或属于其他租户。"],
  "job.failed": ["The job failed", "任务失败"],
  "job.cancelled": ["Cancelled", "已取消"],
  "job.cancelled.words": ["No files were kept. You can run the job again with other options.", "未保留任何文件。你可以修改选项后重新提交。"],
  "job.again": ["Edit and run again", "修改后重新生成"],
  "job.delete": ["Delete", "删除"],
  "job.delete.sure": ["Delete permanently?", "确定永久删除？"],
  "job.deleted": ["Deleted.", "已删除。"],
  "job.other": ["This job belongs to another tenant. You can only view it.", "此任务属于其他租户，仅可查看。"],
  "job.took": ["rendered in {time}", "生成耗时 {time}"],
  "job.lasts": ["{time} long", "时长 {time}"],

  "compare.slider": ["Slider", "滑动对比"],
  "compare.beside": ["Side by side", "并排对比"],
  "compare.how": ["Comparison", "对比方式"],
  "compare.original": ["Original", "原始素材"],
  "compare.result": ["Result", "生成结果"],
  "compare.split": ["Share of the original", "原始素材所占比例"],
  "compare.play": ["Play", "播放"],
  "compare.pause": ["Pause", "暂停"],
  "compare.seek": ["Position", "播放位置"],
  "compare.elsewhere": ["The original is a link to another server, so it cannot be shown here.", "原始素材位于其他服务器，无法在此显示。"],
  "compare.nooriginal": ["The original cannot be played. It was deleted, or your browser does not support its format.", "原始素材无法播放，可能已被删除，或浏览器不支持其格式。"],
  "compare.fit": ["Lip-sync confidence: {value}, no delay.", "口型同步置信度：{value}，无延迟。"],
  "compare.fit.late": ["Lip-sync confidence: {value}, lips {time} ms late.", "口型同步置信度：{value}，口型滞后 {time} 毫秒。"],
  "compare.fit.early": ["Lip-sync confidence: {value}, lips {time} ms early.", "口型同步置信度：{value}，口型提前 {time} 毫秒。"],
  "compare.fit.why": ["The curve shows it over time; near 0, lips and audio do not match.", "曲线显示置信度随时间的变化，接近 0 表示口型与音频不匹配。"],
  "compare.pauses": ["Voice gate closed for {seconds} s, shaded above. The lips rest at: {times} s.", "语音门关闭 {seconds} 秒（上方阴影部分），口型静止于：{times} 秒。"],
  "compare.download": ["Download", "下载"],
  "compare.code": ["Use the API", "通过 API 调用"],
  "compare.copy": ["Copy", "复制"],
  "compare.copied": ["Copied.", "已复制。"],

  "credentials.looking": ["Verifying the content credentials …", "正在验证内容凭证……"],
  "credentials.unable": ["The content credentials cannot be verified. Reload the page to try again.", "无法验证内容凭证，请刷新页面重试。"],
  "credentials.trusted": ["Signed as AI-generated", "已签名为 AI 生成"],
  "credentials.unknown_signer": ["Signed as AI-generated by an unknown signer", "已签名为 AI 生成，但签名者未知"],
  "credentials.invalid": ["The signature is not valid: the video was changed", "签名无效：视频已被修改"],
  "credentials.none": ["Not marked as AI-generated: tell your viewers", "未标记为 AI 生成：请自行告知观众"],
  "credentials.signer": ["Signer: {name}.", "签名者：{name}。"],
  "credentials.development": ["Signer: this server's development certificate, which others do not trust.", "签名者：此服务器的开发证书，其他系统不会信任它。"],
  "credentials.made": ["Model {model}, seed {seed}.", "模型 {model}，种子 {seed}。"],
  "credentials.source": ["The credentials of the original are included.", "已包含原始素材的内容凭证。"],

  "jobs.title": ["Jobs", "任务"],
  "jobs.state": ["State", "状态"],
  "jobs.all": ["All", "全部"],
  "jobs.active": ["In progress", "进行中"],
  "jobs.search": ["Search", "搜索"],
  "jobs.search.hint": ["Name, model or id", "名称、模型或任务 ID"],
  "jobs.since": ["Submitted", "提交时间"],
  "jobs.ever": ["Any time", "全部时间"],
  "jobs.day": ["Last 24 hours", "最近 24 小时"],
  "jobs.week": ["Last 7 days", "最近 7 天"],
  "jobs.tenants": ["All tenants", "所有租户"],
  "jobs.none": ["No jobs yet", "还没有任务"],
  "jobs.none.words": ["Your videos are listed here, with the files and options to render them again.", "你的视频会列在这里，并保留文件和选项，方便再次生成。"],
  "jobs.nomatch": ["No job matches", "没有匹配的任务"],
  "jobs.nomatch.words": ["Change the search or the filters.", "请更换搜索词或筛选条件。"],
  "jobs.more": ["Show more", "显示更多"],
  "jobs.count": ["{count} in total", "共 {count} 个任务"],
  "jobs.first": ["Create your first video", "制作第一个视频"],

  "keys.title": ["API keys", "API 密钥"],
  "keys.words": ["Give each program its own key, so that you can revoke one without affecting the others.", "为每个程序使用单独的密钥，撤销其中一个不会影响其他程序。"],
  "keys.noadmin": ["Managing keys needs the scope admin", "管理密钥需要 admin 权限"],
  "keys.noadmin.words": ["You are signed in with the key {name} of tenant {tenant}, with the scopes {scopes}.", "当前登录的密钥：{name}；租户：{tenant}；权限：{scopes}。"],
  "keys.name": ["Name", "名称"],
  "keys.tenant": ["Tenant", "租户"],
  "keys.scopes": ["Scopes", "权限"],
  "keys.run": ["Create and delete jobs", "创建和删除任务"],
  "keys.read": ["View jobs", "查看任务"],
  "keys.metrics": ["Read metrics", "读取指标"],
  "keys.admin": ["Manage keys", "管理密钥"],
  "keys.create": ["Create key", "创建密钥"],
  "keys.once": ["Copy the key now. It is not shown again.", "请立即复制密钥，之后将不再显示。"],
  "keys.new": ["New key", "新密钥"],
  "keys.new.named": ["New key: {name}", "新密钥：{name}"],
  "keys.done": ["I have copied it", "我已复制"],
  "keys.used": ["Last used: {time}", "最近使用：{time}"],
  "keys.created": ["Created: {time}", "创建时间：{time}"],
  "keys.never": ["never", "从未使用"],
  "keys.unnamed": ["Unnamed", "未命名"],
  "keys.this": ["This key", "当前密钥"],
  "keys.revoke": ["Revoke", "撤销"],
  "keys.revoke.sure": ["Revoke permanently?", "确定永久撤销？"],
  "keys.revoked": ["Revoked", "已撤销"],
  "keys.expired": ["Expired", "已过期"],
  "keys.badtenant": ["Enter a tenant of 1 to 64 letters, digits, - or _.", "租户名须为 1 至 64 个字母、数字、- 或 _。"],
  "keys.noscope": ["Choose at least one scope.", "请至少选择一项权限。"],

  "health.title": ["Status", "状态"],
  "health.ready": ["Ready", "服务就绪"],
  "health.notready": ["No worker is ready yet", "暂无就绪的工作进程"],
  "health.ready.words": ["The model {model} is loaded.", "已加载模型 {model}。"],
  "health.notready.words": ["The model {model} is loading, or a device is unavailable. Jobs wait until a worker is ready.", "正在加载模型 {model}，或计算设备不可用。任务会排队，直到有工作进程就绪。"],
  "health.devices": ["Devices", "设备"],
  "health.nodevices": ["This process runs no worker.", "此进程未运行工作进程。"],
  "health.up": ["Ready", "就绪"],
  "health.works": ["Running: {count}", "处理中：{count}"],
  "health.down": ["Starting", "启动中"],
  "health.starts": ["started {count} times", "已启动 {count} 次"],
  "health.everywhere": ["All machines", "所有机器"],
  "health.idle": ["Idle", "空闲"],
  "health.busy": ["Busy", "处理中"],
  "health.starting": ["Starting", "启动中"],
  "health.quarantined": ["Quarantined", "已隔离"],
  "health.draining": ["Draining", "正在停止"],
  "health.queue": ["Queue", "队列"],
  "health.waiting": ["waiting", "排队"],
  "health.running": ["running", "进行中"],
  "health.oldest": ["The oldest job has waited {time}.", "最早的任务已等待 {time}。"],
  "health.nowait": ["No job is waiting.", "没有任务在排队。"],
  "health.speed": ["Speed", "速度"],
  "health.realtime": ["s of video per second", "秒视频 / 秒"],
  "health.usual": ["A job usually takes {time}.", "每个任务通常需要 {time}。"],
  "health.nospeed": ["Available after the first result.", "完成第一个任务后显示。"],
  "health.disk": ["Disk", "磁盘"],
  "health.free": ["free of {total}", "可用，共 {total}"],
  "health.least": ["Below {least}, uploads and jobs are rejected.", "可用空间低于 {least} 时，将拒绝上传和新任务。"],
  "health.metrics": ["Metrics (Prometheus)", "监控指标（Prometheus）"],

  "time.seconds": ["{n} s", "{n} 秒"],
  "time.minutes": ["{m} min {s} s", "{m} 分 {s} 秒"],
  "time.hours": ["{h} h {m} min", "{h} 小时 {m} 分"],
};

/** Chinese messages of failed jobs, by code; in English the server's own message is shown, which has details. */
const FAILURES = {
  parameter_invalid: "某个选项的值无效，请修改后重新提交。",
  manifest_invalid: "任务清单有误，请根据报告逐行修改。",
  input_not_found: "找不到输入文件，请重新上传。",
  input_is_directory: "输入是文件夹，请选择文件。",
  input_empty: "输入文件为空，可能未复制完整，请重新上传。",
  input_unreadable: "无法读取输入文件，请重新上传。",
  media_not_recognised: "无法识别的音视频文件，请更换文件。",
  media_truncated: "文件不完整或已损坏，请重新导出后上传。",
  media_no_video: "文件中没有视频画面，请更换文件。",
  media_no_audio: "文件中没有音频，请更换文件。",
  media_too_large: "文件的时长或尺寸超出限制，请缩短或缩小后重试。",
  media_format_refused: "不支持此文件类型，请直接上传音视频文件。",
  media_unsupported_pixels: "不支持此画面格式（HDR 或带透明通道），请转换为普通 MP4。",
  media_timeout: "读取文件超时，请重新编码为 MP4。",
  media_failed: "文件解码失败，请重新编码为 MP4。",
  face_not_found: "未检测到人脸：请使用正面、清晰的人脸。tiny 模型只支持手绘人物，真人请使用 LatentSync 模型。",
  face_choice_unmatched: "没有找到所选的人脸，请更换选择方式。",
  model_unknown: "服务器上没有此模型，请联系管理员。",
  weights_missing: "服务器缺少模型文件，请联系管理员。",
  weights_hash_mismatch: "模型文件已损坏，请联系管理员。",
  weights_truncated: "模型文件不完整，请联系管理员。",
  weights_unsafe: "模型文件不安全，已拒绝加载，请联系管理员。",
  weights_architecture: "模型文件与程序版本不匹配，请联系管理员。",
  weights_download_failed: "模型下载失败，请联系管理员。",
  disk_full: "服务器磁盘已满，请稍后重试或联系管理员。",
  output_not_writable: "无法写入结果，请联系管理员。",
  out_of_memory: "内存不足，请缩小视频或联系管理员。",
  device_unavailable: "计算设备不可用，请稍后重试或联系管理员。",
  ffmpeg_missing: "服务器缺少 FFmpeg，请联系管理员。",
  signing_failed: "结果签名失败，未发布，请联系管理员。",
  consent_required: "此服务器要求填写肖像授权（consent），请填写后重新提交。",
  content_refused: "内容审核未通过，请更换素材或联系管理员。",
  job_refused: "任务被服务器的审核规则拒绝，请联系管理员。",
  hook_failed: "任务审核服务没有响应，任务未执行，请联系管理员。",
  job_busy: "相同的任务正在运行，请等待其完成。",
  output_not_finite: "生成结果异常，未发布，请更换种子后重试。",
  output_flat: "生成的口型没有变化，未发布，请更换素材。",
  output_noise: "生成的口型是噪点，未发布，请更换种子后重试。",
  output_mask_coloured: "生成的口型异常，未发布，请更换素材。",
  output_miscoloured: "生成的口型颜色异常，未发布，请更换素材。",
  cluster_away: "没有可用的 Ray 集群，请联系管理员。",
  batch_incomplete: "部分视频未完成，请查看报告后重新运行。",
  cancelled: "任务已取消。",
  url_invalid: "链接无效，请检查。",
  url_not_allowed: "不允许访问该链接的地址，请改为上传文件。",
  url_unreachable: "无法连接到该链接，请检查链接或改为上传文件。",
  url_timeout: "下载链接超时，请改为上传文件。",
  url_too_large: "文件过大，请压缩后重试。",
  url_bad_status: "无法从该链接下载文件，请检查链接或改为上传文件。",
  url_wrong_type: "文件类型不正确，请更换文件。",
  url_too_many_redirects: "链接重定向次数过多，请使用直接链接。",
  worker_lost: "工作进程意外停止，请重新提交。",
  storage_away: "服务器存储暂时不可用，请稍后重新提交。",
  queue_timeout: "任务排队超时，请稍后重新提交。",
  run_timeout: "任务运行超时，请使用更短的视频。",
};

const LANGUAGES = ["en", "zh"];
const STORAGE_KEY = "lipsync.language";
let language = localStorage.getItem(STORAGE_KEY) ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const currentLanguage = () => language;

export function setLanguage(name) {
  language = LANGUAGES.includes(name) ? name : "en";
  localStorage.setItem(STORAGE_KEY, language);
}

/** Return a text in the current language. */
export function t(name, values = {}) {
  const text = TEXTS[name][LANGUAGES.indexOf(language)] ?? TEXTS[name][0];
  return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}

/** Return whether there is a text of that name. */
export const hasText = (name) => name in TEXTS;

/** Return the message of a failed job. */
export const failureText = ({ code, message }) => {
  if (language !== "zh" || !FAILURES[code]) return message;
  return code === "face_choice_unmatched" ? `${FAILURES[code]}（${message}）` : FAILURES[code]; // it lists the faces
};

/** Return the message of a failed request. */
export const errorText = (error) => (error.status === 0 ? t("error.unreachable") : error.message || String(error));

/** Join sentences as the language does. */
export const joinSentences = (sentences) => sentences.filter(Boolean).join(language === "zh" ? "" : " ");

/** Join the parts of a list as the language does. */
export const joinList = (parts) => parts.join(language === "zh" ? "、" : ", ");

// --- quantities ---

/** Format a duration, such as 2.4 s or 1 min 5 s. */
export function formatDuration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return t("time.seconds", { n: s < 10 ? Math.round(s * 10) / 10 : Math.round(s) });
  const whole = Math.round(s);
  if (whole < 3600) return t("time.minutes", { m: Math.floor(whole / 60), s: whole % 60 });
  return t("time.hours", { h: Math.floor(whole / 3600), m: Math.floor((whole % 3600) / 60) });
}

/** Format a number of bytes, such as 1.2 MB of 1024² bytes, as the vendors count. */
export function formatBytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  const value = count / 1024 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}

/** Format a time (ISO 8601, or seconds since 1970) briefly. */
export function formatTime(value) {
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  const sameDay = date.toDateString() === new Date().toDateString();
  const options = sameDay ? { hour: "2-digit", minute: "2-digit" } : { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(language === "zh" ? "zh-CN" : "en-GB", options).format(date);
}

/** Format a position in a video as minutes and seconds. */
export const formatPosition = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Exported for the test that both languages are complete. */
export const tables = { TEXTS, FAILURES };
