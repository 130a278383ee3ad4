// 中文。What the widgets say in Chinese; the words are those of locales/zh and of the help pages.

export const ZH = {
    // Timeline
    "Up and Down choose a segment. Left and Right move it, with Shift its end, by one chunk. Enter edits its prompt, S splits, D duplicates, Delete removes it. Ctrl+Z takes back, Ctrl+Shift+Z or Ctrl+Y brings back.":
        "上、下键选择一段。左、右键将其移动一个分块，按住 Shift 则移动其结尾。Enter 编辑提示词，S 拆分，D 复制，Delete 删除。Ctrl+Z 撤销，Ctrl+Shift+Z 或 Ctrl+Y 重做。",
    "Timeline": "时间轴",
    "Prompts over time": "随时间变化的提示词",
    "Take back (Ctrl+Z)": "撤销（Ctrl+Z）",
    "Bring back (Ctrl+Shift+Z)": "重做（Ctrl+Shift+Z）",
    "Split": "拆分",
    "Split the segment in two (S)": "将这一段拆成两段（S）",
    "Duplicate": "复制",
    "Put a copy behind it (D)": "在其后放一个副本（D）",
    "Delete": "删除",
    "Remove the segment (Delete)": "删除这一段（Delete）",
    "Prompt of the segment": "这一段的提示词",
    "What is shown here": "这里显示什么",
    "blend": "过渡",
    "shape": "过渡方式",
    "seed": "种子",
    "guidance": "引导强度",
    "anchor": "锚点",
    "LoRAs": "LoRA",
    "none": "无",
    "LoRAs of this segment with their strengths, with commas: snow.safetensors 0.8, rain.safetensors 0.5":
        "本片段的 LoRA 及其强度,用逗号分隔:snow.safetensors 0.8, rain.safetensors 0.5",
    "default": "默认",
    "no picture": "无图片",
    "Chunks that the change to this prompt takes; empty: as set in the node": "切换到此提示词所用的分块数；留空：使用节点的设置",
    "Seed of these chunks; empty: the sampler's": "这些分块的种子；留空：使用采样器的种子",
    "Guidance scale of these chunks; empty: the sampler's": "这些分块的引导强度；留空：使用采样器的值",
    "Name of a picture in the input folder that the video is anchored on from here":
        "input 文件夹中的图片名，视频从这里起以它为锚点",
    "How the two prompts blend; default: as set in the node": "两个提示词如何混合；默认：使用节点的设置",
    "The schedule comes from another node; the text here is not used.": "日程来自另一个节点；此处的文本不会使用。",
    "The schedule comes from the file {file}; the text here is not used.": "日程来自文件 {file}；此处的文本不会使用。",
    "The text is JSON, which the timeline does not edit.": "文本是 JSON，时间轴不会改动它。",
    "Segment {number} is too short for the blend: the next prompt starts with a jump.":
        "第 {number} 段短于其过渡：下一个提示词会突然开始。",
    "Segments {numbers} are too short for the blend: the next prompts start with a jump.":
        "第 {numbers} 段短于其过渡：之后的提示词会突然开始。",
    "{place} · {from} s on · chunk {chunk} on": "{place} · {from} 秒起 · 第 {chunk} 块起",
    "{place} · {from} – {to} s · chunk {chunk}": "{place} · {from} – {to} 秒 · 第 {chunk} 块",
    "{place} · {from} – {to} s · chunks {chunk}–{last}": "{place} · {from} – {to} 秒 · 第 {chunk}–{last} 块",
    "Segment {number} of {total}, from {from} seconds on, from chunk {chunk} on":
        "第 {number} 段，共 {total} 段，从 {from} 秒起，从第 {chunk} 块起",
    "Segment {number} of {total}, {from} to {to} seconds, chunks {chunk} to {last}":
        "第 {number} 段，共 {total} 段，{from} 到 {to} 秒，第 {chunk} 到 {last} 块",
    "{label}, blends in over {blend} chunks, {shape}": "{label}，用 {blend} 个分块过渡，{shape}",
    "{label}, too short for its blend": "{label}，短于其过渡",
    "{label}. {prompt}": "{label}。{prompt}",
    "(empty prompt)": "（空提示词）",

    // Strip of chunks
    "Left and Right choose a chunk, Home and End the first and last. Enter or Space plays it, Escape ends that. R gives it another seed, D redoes the video from it, B branches after it.":
        "左、右键选择分块，Home 和 End 选择首块和末块。Enter 或空格键播放，Escape 停止。R 换一个种子，D 从它起重做视频，B 在它之后分支。",
    "The chunks are shown here when the video is made.": "生成视频时，分块会显示在这里。",
    "▶ Play": "▶ 播放",
    "Play the chunk (Enter)": "播放该分块（Enter）",
    "Re-roll": "重抽",
    "Give this chunk another seed; later ones keep theirs (R)": "为该分块换一个种子；后面的分块保留各自的种子（R）",
    "Redo from here": "从此重做",
    "Give this chunk another seed and drop the re-rolls after it (D)": "为该分块换一个种子，并去掉其后的重抽（D）",
    "Branch from here": "从此分支",
    "Add nodes that continue after this chunk, for another prompt or seed; this video stays (B)":
        "添加从该分块之后继续的节点，可用其他提示词或种子；本视频保持不变（B）",
    "Chosen chunk": "选中的分块",
    "Chunks of the video": "视频的分块",
    "queued": "排队",
    "running": "生成中",
    "stopped": "已停止",
    "done": "完成",
    "stale": "已过期",
    "being made": "正在生成",
    "stopped before it was finished": "未完成就已停止",
    "done, taken from disk": "完成，取自磁盘",
    "done, but an input has changed since: the next run makes it again": "完成，但此后有输入改变：下次运行会重新生成",
    "Chunk {chunk} of {first} to {last}: {state}": "第 {chunk} 块（{first} 到 {last}）：{state}",
    "Chunk {chunk} of {first} to {last}, to {seconds} seconds: {state}":
        "第 {chunk} 块（{first} 到 {last}），至 {seconds} 秒：{state}",
    "{done} of {total} chunks": "{total} 个分块中的 {done} 个",
    "{done} of {total} chunks, {stale} stale": "{total} 个分块中的 {done} 个，其中 {stale} 个已过期",
    "chunk {chunk} chosen; {summary}": "选中第 {chunk} 块；{summary}",
    "reroll is now {changed}; press Run to make these chunks": "重抽现为 {changed}；按“运行”生成这些分块",
    "a branch after chunk {chunk} was added below; change its prompt or seed":
        "已在下方添加第 {chunk} 块之后的分支；请更改其提示词或种子",
    'reroll "{part}" must be chunk:seed, two whole numbers, as in 3:77; correct it first':
        "重抽“{part}”必须写成 分块:种子 两个整数，例如 3:77；请先更正",
};
