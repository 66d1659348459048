// Everything the page says: [English, 中文]. {name} stands for a value.

const TEXTS = {
  "skip": ["Skip to content", "跳到内容"],
  "nav.label": ["Pages", "页面"],
  "nav.create": ["Create", "创作"],
  "nav.jobs": ["Jobs", "任务"],
  "nav.keys": ["Keys", "密钥"],
  "nav.health": ["Health", "状态"],
  "bar.language": ["中文", "English"],
  "bar.theme": ["Light or dark", "浅色或深色"],
  "bar.leave": ["Sign out", "退出"],
  "foot": ["Everything stays on this server.", "所有数据都留在这台服务器上。"],
  "foot.api": ["API description", "接口描述"],

  "enter.title": ["Make a face speak your words", "让人物说出你的话"],
  "enter.words": ["A video and a voice in, the same video with lips that speak that voice out. It all happens on this server.", "放入一段视频和一段声音，得到口型与声音一致的同一段视频。一切都在这台服务器上完成。"],
  "enter.key": ["API key", "API 密钥"],
  "enter.hint": ["The server printed one at its first start. It stays in this tab until you close it.", "服务器首次启动时会打印一个。密钥只保存在此标签页中，关闭后即清除。"],
  "enter.go": ["Sign in", "登录"],
  "enter.wrong": ["This key is not valid. Check it, or ask whoever runs the server for a new one.", "密钥无效。请检查，或向管理员索取新的密钥。"],
  "enter.noread": ["This key may not look at anything: it lacks the scope read.", "此密钥没有 read 权限，无法查看任何内容。"],
  "enter.empty": ["Paste your key first.", "请先粘贴密钥。"],

  "error.unreachable": ["The server does not answer. Check that it runs and that your network reaches it.", "服务器没有响应。请确认它正在运行且网络可达。"],
  "error.again": ["Try again", "重试"],

  "create.title": ["What should they say?", "想让他们说什么？"],
  "create.words": ["Pick a picture of someone and a voice. You can watch the result while it is made.", "选择人物画面和声音，制作过程中即可观看。"],
  "create.kind": ["What you have", "素材类型"],
  "kind.video": ["A video", "视频"],
  "kind.image": ["A portrait", "肖像"],
  "kind.several": ["Two speakers", "两位说话人"],
  "kind.video.words": ["Someone filmed, new words", "已有视频，换新台词"],
  "kind.image.words": ["A still picture that speaks", "让静态照片开口说话"],
  "kind.several.words": ["Two people in a video or a picture", "视频或图片中的两个人"],
  "media.video": ["Video", "视频"],
  "media.image": ["Portrait", "肖像"],
  "media.audio": ["Voice", "声音"],
  "media.left_audio": ["Left person's voice", "左侧人物的声音"],
  "media.right_audio": ["Right person's voice", "右侧人物的声音"],
  "media.mask_image": ["Mask: white where the picture may change", "蒙版：白色区域可修改"],
  "media.drop": ["Drop it here, or choose a file", "拖放到此处，或选择文件"],
  "media.record": ["Record", "录制"],
  "media.stop": ["Stop recording", "停止录制"],
  "media.discard": ["Discard", "放弃"],
  "media.recording": ["Recording: {seconds} s", "正在录制：{seconds} 秒"],
  "media.norecord": ["The browser did not give access: {why}", "浏览器未授予权限：{why}"],
  "media.remove": ["Remove {what}", "移除{what}"],
  "media.kept": ["The file of the earlier job", "先前任务的文件"],
  "media.anything": ["Common formats, up to {size}", "常见格式，最大 {size}"],
  "media.upto": ["{formats}, up to {size}", "{formats}，最大 {size}"],
  "media.lasting": ["{low} to {high} s", "{low} 至 {high} 秒"],
  "media.sides": ["{low} to {high} pixels a side", "边长 {low} 至 {high} 像素"],
  "refuse.missing": ["Add this first.", "请先添加。"],
  "refuse.empty": ["This file is empty. It was probably not copied completely.", "文件为空，可能没有复制完整。"],
  "refuse.kind": ["This is no {what} that can be used. Choose another file.", "这不是可用的{what}文件，请另选。"],
  "refuse.format": ["This is a {found} file; the model takes {formats}.", "这是 {found} 文件，该模型只接受 {formats}。"],
  "refuse.bytes": ["This file has {size}; at most {most} is taken.", "文件大小为 {size}，上限为 {most}。"],
  "refuse.duration": ["This lasts {seconds} s; the model takes {low} to {high} s.", "时长 {seconds} 秒，该模型接受 {low} 至 {high} 秒。"],
  "refuse.pixels": ["This has {width} × {height} pixels; both sides must be from {low} to {high}.", "尺寸为 {width} × {height} 像素，两边均须为 {low} 至 {high}。"],
  "refuse.range": ["Between {low} and {high}.", "须在 {low} 与 {high} 之间。"],
  "refuse.integer": ["A whole number.", "须为整数。"],
  "create.model": ["Model", "模型"],
  "create.options": ["Options", "选项"],
  "create.title.label": ["Name", "名称"],
  "create.title.hint": ["To find it again", "便于日后查找"],
  "create.default": ["Automatic", "自动"],
  "create.go": ["Make them speak", "开始制作"],
  "create.check": ["Something is still missing or does not fit. It is marked above.", "还有内容缺失或不符合要求，已在上方标出。"],
  "create.uploading": ["Uploading {what}: {percent} %", "正在上传{what}：{percent}%"],
  "create.stop": ["Stop", "停止"],
  "create.consent": ["Only with the consent of the person shown.", "请务必事先取得画面中人物的同意。"],
  "create.again": ["Inputs and options are those of the earlier job. Change what you like.", "已载入先前任务的素材和选项，可随意修改。"],
  "create.norun": ["This key may look but not create: it lacks the scope run.", "此密钥只能查看，不能创建：缺少 run 权限。"],
  "option.guidance_scale": ["Weight of the voice", "声音的权重"],
  "option.inference_steps": ["Denoising steps", "去噪步数"],
  "option.seed": ["Seed", "随机种子"],
  "option.loop_mode": ["When the voice is longer", "声音更长时"],
  "option.face": ["Who speaks", "谁在说话"],
  "option.fps": ["Frame rate", "帧率"],
  "option.resolution": ["Largest short side", "短边上限"],
  "option.order": ["Who speaks when", "说话顺序"],
  "option.motion": ["How the head moves", "头部动作"],
  "option.preset": ["Speed", "速度"],
  "option.prompt": ["Prompt", "提示词"],
  "option.consent": ["Consent", "同意书"],
  "about.guidance_scale": ["Higher follows the voice more closely.", "越高越贴近声音。"],
  "about.inference_steps": ["More is finer and slower.", "越多越精细，也越慢。"],
  "about.seed": ["The same seed gives the same film. -1: random.", "相同的种子得到相同的结果。-1 为随机。"],
  "about.loop_mode": ["Back and forth, or from the start again.", "来回播放，或从头重播。"],
  "about.face": ["largest, left, right, a number, or X,Y@SECONDS.", "largest、left、right、编号，或 X,Y@秒数。"],
  "about.fps": ["Empty: as the source.", "留空则与原视频相同。"],
  "about.resolution": ["Scaled down to that, never up.", "只缩小，不放大。"],
  "about.order": ["Both at once, or one after the other.", "同时说话，或先后说话。"],
  "about.motion": ["A still head, natural small movements, or a generated clip.", "静止、自然微动，或生成的动作片段。"],
  "about.preset": ["Faster leaves a little out.", "越快，细节略有取舍。"],
  "about.prompt": ["Used by generated motion alone.", "仅用于生成的动作。"],
  "about.consent": ["Where the consent of the person shown is on file: a number or a link.", "画面人物同意书的存档编号或链接。"],
  "value.still": ["Not at all", "静止"],
  "value.natural": ["Naturally", "自然"],
  "value.generated": ["Generated", "生成"],
  "value.default": ["As exact as it gets", "最精确"],
  "value.fast": ["Fast", "快"],
  "value.fastest": ["Fastest", "最快"],
  "value.pingpong": ["Back and forth", "来回播放"],
  "value.loop": ["From the start again", "从头重播"],
  "value.meanwhile": ["At the same time", "同时"],
  "value.left_right": ["Left, then right", "先左后右"],
  "value.right_left": ["Right, then left", "先右后左"],

  "state.waiting": ["Waiting", "排队中"],
  "state.running": ["Working", "制作中"],
  "state.succeeded": ["Done", "完成"],
  "state.failed": ["Failed", "失败"],
  "state.cancelled": ["Cancelled", "已取消"],
  "state.stopping": ["Stopping", "正在停止"],
  "stage.wait": ["Queue", "排队"],
  "stage.motion": ["Motion", "动作"],
  "stage.faces": ["Faces", "人脸"],
  "stage.audio": ["Voice", "声音"],
  "stage.render": ["Lips", "口型"],
  "stage.assemble": ["Film", "合成"],
  "watch.stages": ["Steps", "步骤"],
  "watch.next": ["Next in line.", "下一个就是它。"],
  "watch.behind": ["{count} of your jobs come first.", "前面还有你的 {count} 个任务。"],
  "watch.starts": ["Starts about {time}.", "预计 {time} 开始。"],
  "watch.prepare": ["A worker has taken it.", "已开始处理。"],
  "watch.doing.motion": ["Setting the portrait in motion", "正在让肖像动起来"],
  "watch.doing.faces": ["Looking for faces", "正在寻找人脸"],
  "watch.doing.audio": ["Listening to the voice", "正在分析声音"],
  "watch.doing.render": ["Making the lips speak", "正在生成口型"],
  "watch.doing.assemble": ["Putting the film together", "正在合成影片"],
  "watch.frames": ["{done} of {total} frames", "{done} / {total} 帧"],
  "watch.speed": ["{speed} a second", "每秒 {speed} 帧"],
  "watch.left": ["about {time} left", "约剩 {time}"],
  "watch.bar": ["Progress", "进度"],
  "watch.soon": ["The first seconds play here as soon as they are made.", "最初几秒制作好后会立即在此播放。"],
  "watch.preview": ["{seconds} s can be watched already", "已可观看 {seconds} 秒"],
  "watch.nopreview": ["This browser cannot play the film while it is made. It comes when it is done.", "此浏览器无法边制作边播放，完成后即可观看。"],
  "watch.lost": ["The connection to the server is lost. Trying again …", "与服务器的连接已断开，正在重试……"],
  "watch.cancel": ["Cancel", "取消"],
  "watch.warned": ["An earlier attempt was interrupted. The work goes on after what was finished.", "之前的尝试被中断，已从完成的部分继续。"],
  "job.video": ["The film so far", "目前的影片"],
  "job.gone": ["This job does not exist any more", "任务已不存在"],
  "job.gone.words": ["It was deleted, or it belongs to somebody else.", "它已被删除，或属于他人。"],
  "job.failed": ["It did not work out", "制作未成功"],
  "job.cancelled": ["Cancelled", "已取消"],
  "job.cancelled.words": ["Nothing was kept of it. You can start it again, with changes if you like.", "没有保留任何内容。可以修改后重新开始。"],
  "job.again": ["Again, with changes", "修改后重做"],
  "job.delete": ["Delete", "删除"],
  "job.delete.sure": ["Delete for good?", "确定永久删除？"],
  "job.deleted": ["Deleted.", "已删除。"],
  "job.other": ["Another tenant's job: look only.", "其他租户的任务：仅可查看。"],
  "job.took": ["made in {time}", "用时 {time}"],
  "job.lasts": ["{time} long", "时长 {time}"],

  "compare.slider": ["Slider", "滑动对比"],
  "compare.beside": ["Side by side", "并排"],
  "compare.how": ["Comparison", "对比方式"],
  "compare.original": ["Original", "原片"],
  "compare.result": ["Result", "成片"],
  "compare.split": ["How much of the original is shown", "显示原片的比例"],
  "compare.play": ["Play", "播放"],
  "compare.pause": ["Pause", "暂停"],
  "compare.seek": ["Position", "播放位置"],
  "compare.sound": ["Sound", "声音"],
  "compare.elsewhere": ["The original was given as a link to another server and is not shown here.", "原片是其他服务器的链接，此处不显示。"],
  "compare.nooriginal": ["The original cannot be played any more: it was deleted, or this browser does not know its format.", "原片已无法播放：可能已被删除，或浏览器不支持其格式。"],
  "compare.download": ["Download", "下载"],
  "compare.code": ["The same by program", "用程序完成同样的事"],
  "compare.copy": ["Copy", "复制"],
  "compare.copied": ["Copied.", "已复制。"],

  "credentials.looking": ["Looking at its content credentials …", "正在检查内容凭证……"],
  "credentials.unable": ["Its content credentials could not be looked at.", "无法检查内容凭证。"],
  "credentials.trusted": ["Signed as generated", "已签名：由模型生成"],
  "credentials.unknown_signer": ["Signed as generated, by somebody this server does not know", "已签名：由模型生成，但此服务器不认识签名者"],
  "credentials.invalid": ["The signature does not fit: the film was changed", "签名不符：影片已被改动"],
  "credentials.none": ["Not marked as generated: tell viewers yourself", "未标注为生成内容：请自行告知观众"],
  "credentials.signer": ["By {name}.", "签名者：{name}。"],
  "credentials.development": ["By this server's development certificate, which nobody else knows.", "使用此服务器的开发证书，他人不会认可。"],
  "credentials.made": ["Model {model}, seed {seed}.", "模型 {model}，种子 {seed}。"],
  "credentials.source": ["The original's own credentials are kept inside.", "原片自带的凭证已保留在内。"],

  "jobs.title": ["Jobs", "任务"],
  "jobs.state": ["State", "状态"],
  "jobs.all": ["All", "全部"],
  "jobs.active": ["Active", "进行中"],
  "jobs.search": ["Search", "搜索"],
  "jobs.search.hint": ["Name, model or id", "名称、模型或编号"],
  "jobs.since": ["Submitted", "提交时间"],
  "jobs.ever": ["Any time", "不限"],
  "jobs.day": ["Last 24 hours", "24 小时内"],
  "jobs.week": ["Last 7 days", "7 天内"],
  "jobs.tenants": ["All tenants", "所有租户"],
  "jobs.none": ["Nothing here yet", "还没有任务"],
  "jobs.none.words": ["Your films will be listed here, with everything needed to make them again.", "你制作的影片会列在这里，随时可以重新制作。"],
  "jobs.nomatch": ["Nothing matches", "没有符合条件的任务"],
  "jobs.nomatch.words": ["Try other words or another state.", "换个关键词或状态试试。"],
  "jobs.more": ["Show more", "显示更多"],
  "jobs.count": ["{count} in all", "共 {count} 个"],
  "jobs.first": ["Make the first one", "制作第一个"],

  "keys.title": ["API keys", "API 密钥"],
  "keys.words": ["Every program gets its own, so that one can be revoked without the others noticing.", "为每个程序使用单独的密钥，撤销其中一个不影响其他。"],
  "keys.noadmin": ["Only a key with the scope admin can manage keys", "只有 admin 权限的密钥才能管理密钥"],
  "keys.noadmin.words": ["You are signed in as {name} of the tenant {tenant}, with the scopes {scopes}.", "当前密钥：{name}，租户：{tenant}，权限：{scopes}。"],
  "keys.name": ["Name", "名称"],
  "keys.name.hint": ["Optional", "可选"],
  "keys.tenant": ["Tenant", "租户"],
  "keys.scopes": ["May", "权限"],
  "keys.run": ["Create and delete", "创建与删除"],
  "keys.read": ["Look", "查看"],
  "keys.admin": ["Manage keys", "管理密钥"],
  "keys.create": ["Create a key", "新建密钥"],
  "keys.once": ["Copy it now. It is not shown again.", "请立即复制，之后不会再显示。"],
  "keys.new": ["The new key", "新密钥"],
  "keys.done": ["I have it", "我已保存"],
  "keys.used": ["Last used", "最近使用"],
  "keys.created": ["Created", "创建时间"],
  "keys.never": ["Never", "从未"],
  "keys.unnamed": ["No name", "未命名"],
  "keys.this": ["This one", "当前"],
  "keys.revoke": ["Revoke", "撤销"],
  "keys.revoke.sure": ["Revoke for good?", "确定永久撤销？"],
  "keys.revoked": ["Revoked", "已撤销"],
  "keys.expired": ["Expired", "已过期"],
  "keys.badtenant": ["A tenant is 1 to 64 letters, digits, - or _.", "租户为 1 至 64 个字母、数字、- 或 _。"],
  "keys.noscope": ["Choose at least one.", "至少选择一项。"],

  "health.title": ["Health", "状态"],
  "health.ready": ["Ready for work", "可以工作"],
  "health.notready": ["No worker is ready yet", "尚无可用的工作进程"],
  "health.ready.words": ["The model {model} is loaded.", "已加载模型 {model}。"],
  "health.notready.words": ["The model {model} is being loaded, or a device is missing. Jobs wait meanwhile.", "正在加载模型 {model}，或设备缺失。任务将排队等待。"],
  "health.devices": ["Devices", "设备"],
  "health.nodevices": ["This server runs no worker.", "此服务器没有工作进程。"],
  "health.up": ["Ready", "就绪"],
  "health.down": ["Starting", "启动中"],
  "health.starts": ["started {count} times", "已启动 {count} 次"],
  "health.queue": ["Queue", "队列"],
  "health.waiting": ["waiting", "排队"],
  "health.running": ["running", "进行中"],
  "health.oldest": ["The oldest has waited {time}.", "最早的任务已等待 {time}。"],
  "health.nowait": ["Nobody waits.", "没有任务在排队。"],
  "health.speed": ["Speed", "速度"],
  "health.realtime": ["s of film per second of work", "秒影片 / 每秒计算"],
  "health.usual": ["A job usually takes {time}.", "一个任务通常需要 {time}。"],
  "health.nospeed": ["Known after the first result.", "首个结果完成后可知。"],
  "health.disk": ["Disk", "磁盘"],
  "health.free": ["free of {total}", "可用，共 {total}"],
  "health.least": ["Below {least} nothing more is taken.", "低于 {least} 时不再接受任务。"],
  "health.metrics": ["Metrics for monitoring", "监控指标"],

  "time.seconds": ["{n} s", "{n} 秒"],
  "time.minutes": ["{m} min {s} s", "{m} 分 {s} 秒"],
  "time.hours": ["{h} h {m} min", "{h} 小时 {m} 分"],
};

/** What went wrong with a job, by its code; English is what the server says, which knows more. */
const FAILURES = {
  parameter_invalid: "某个选项无法使用，请修改后重试。",
  manifest_invalid: "清单中有错误，请按报告逐行修正。",
  input_not_found: "输入文件不存在，请重新上传。",
  input_is_directory: "输入是文件夹，请选择文件。",
  input_empty: "输入文件为空，可能没有复制完整。",
  input_unreadable: "输入文件无法读取，请重新上传。",
  media_not_recognised: "文件不是可识别的音视频，请换一个。",
  media_truncated: "文件不完整或已损坏，请重新导出后上传。",
  media_no_video: "文件中没有画面，请提供视频。",
  media_no_audio: "文件中没有声音，请提供含声音的文件。",
  media_too_large: "文件的时长或尺寸超出限制。",
  media_format_refused: "不接受此类文件，请直接提供媒体文件。",
  media_unsupported_pixels: "不支持此画面格式（HDR 或透明），请转为普通 mp4。",
  media_timeout: "读取文件耗时过长，请重新编码为 mp4。",
  media_failed: "文件无法解码，请重新编码为 mp4。",
  face_not_found: "画面中没有找到人脸，请换一段正面、清晰的画面。",
  face_choice_unmatched: "没有找到所选的人脸，请换一种选择方式。",
  model_unknown: "服务器上没有此模型，请联系管理员。",
  weights_missing: "模型文件缺失，请联系管理员。",
  weights_hash_mismatch: "模型文件已损坏，请联系管理员。",
  weights_truncated: "模型文件不完整，请联系管理员。",
  weights_unsafe: "模型文件不安全，已拒绝加载，请联系管理员。",
  weights_architecture: "模型文件与程序不符，请联系管理员。",
  weights_download_failed: "模型下载失败，请联系管理员。",
  disk_full: "服务器磁盘已满，请稍后重试或联系管理员。",
  output_not_writable: "结果无法写入，请联系管理员。",
  out_of_memory: "内存不足，请使用更小的视频或联系管理员。",
  device_unavailable: "计算设备不可用，请稍后重试或联系管理员。",
  ffmpeg_missing: "服务器缺少 FFmpeg，请联系管理员。",
  signing_failed: "结果无法签名，未予发布，请联系管理员。",
  batch_invalid: "批次中有任务填写有误，整批未被接受，请按 problems 修改。",
  consent_required: "此服务器要求填写人物同意书的编号（consent）。",
  content_refused: "画面内容不适宜，已被拒绝，请换一段素材或联系管理员。",
  job_refused: "服务器的管理方拒绝了此任务。",
  hook_failed: "任务前的检查没有响应，任务未执行，请联系管理员。",
  job_busy: "相同的任务正在运行，请等待它完成。",
  output_not_finite: "生成结果异常，未予发布，请换种子重试。",
  output_flat: "生成的嘴部没有变化，未予发布，请换一段素材。",
  output_noise: "生成的嘴部是噪点，未予发布，请换种子重试。",
  output_mask_coloured: "生成的嘴部异常，未予发布，请换一段素材。",
  output_miscoloured: "生成的嘴部颜色异常，未予发布，请换一段素材。",
  batch_incomplete: "有片段没有完成，请查看报告后重新运行。",
  cancelled: "已按要求停止。",
  url_invalid: "链接无法使用，请检查。",
  url_not_allowed: "不允许访问该链接的地址，请改为上传文件。",
  url_unreachable: "无法连接该链接，请检查或改为上传文件。",
  url_timeout: "下载链接超时，请改为上传文件。",
  url_too_large: "文件太大，请缩小后重试。",
  url_bad_status: "无法下载该文件，请重新上传。",
  url_wrong_type: "文件类型不符，请换一个文件。",
  url_too_many_redirects: "链接跳转过多，请使用直接链接。",
  worker_lost: "处理进程意外停止，请重新提交。",
  storage_away: "服务器存储暂时不可用，请稍后重新提交。",
  queue_timeout: "任务等待过久，请稍后重新提交。",
  run_timeout: "任务运行过久，请使用更短的视频。",
};

const LANGUAGES = ["en", "zh"];
const KEPT = "lipsync.language";
let language = localStorage.getItem(KEPT) ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const currentLanguage = () => language;

export function setLanguage(name) {
  language = LANGUAGES.includes(name) ? name : "en";
  localStorage.setItem(KEPT, language);
}

/** A text in the chosen language. */
export function t(name, values = {}) {
  const text = TEXTS[name][LANGUAGES.indexOf(language)] ?? TEXTS[name][0];
  return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}

export const has = (name) => name in TEXTS;

/** Why a job failed, in words. */
export const failureText = ({ code, message }) => (language === "zh" && FAILURES[code]) || message;

/** What a call's error says to a person. */
export const errorText = (error) => (error.status === 0 ? t("error.unreachable") : error.message || String(error));

// --- quantities ---

export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return t("time.seconds", { n: s < 10 ? Math.round(s * 10) / 10 : Math.round(s) });
  const whole = Math.round(s);
  if (whole < 3600) return t("time.minutes", { m: Math.floor(whole / 60), s: whole % 60 });
  return t("time.hours", { h: Math.floor(whole / 3600), m: Math.floor((whole % 3600) / 60) });
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}

/** A moment (ISO text, or seconds since 1970), short. */
export function moment(value) {
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  const sameDay = date.toDateString() === new Date().toDateString();
  const options = sameDay ? { hour: "2-digit", minute: "2-digit" } : { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(language === "zh" ? "zh-CN" : "en-GB", options).format(date);
}

/** Minutes and seconds of a place in a film. */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** For the test that both languages are complete. */
export const tables = { TEXTS, FAILURES };
