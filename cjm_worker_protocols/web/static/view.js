// How a job looks: texts for people, rows that touch only what has changed, and what a row opens to.

export const MARKS = {pending: "◌", running: "●", completed: "✓", failed: "✕", cancelled: "⊘", idle: "○", standby: "○", starting: "◌", stopping: "◌", loading: "◌", ended: "⊘"}
const WORDS = {pending: "waiting", completed: "done"}
export const ENDS = new Set(["completed", "failed", "cancelled"])

// Make an element. Text goes in as text, never as HTML.
export function el(tag, properties = {}, ...children) {
	const made = document.createElement(tag)
	if (tag === "button") made.type = tag
	for (const [name, value] of Object.entries(properties)) {
		if (value == null) continue
		if (name in made) made[name] = value
		else made.setAttribute(name, value)
	}
	made.append(...children.filter(child => child != null))
	return made
}

export function bytes(n) {
	if (n == null) return "—"
	for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
		if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${unit}`
	return `${n} B`
}

// What still grows is given in whole seconds.
export function duration(seconds, grows = false) {
	const s = Math.max(0, Math.floor(seconds))
	if (seconds < 10 && !grows) return seconds < .0995 ? `${Math.max(0, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`
	if (s < 60) return `${s} s`
	if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`
	return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`
}

export const urlOf = (id, part = "") => `api/jobs/${encodeURIComponent(id)}${part}`
export const mark = text => el("span", {className: "mark", ariaHidden: true}, text)

export function age(seconds) {
	if (seconds < 5) return "just now"
	if (seconds < 60) return `${Math.floor(seconds)} s`
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min`
	return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`
}

export const seconds = (from, to) => (to - Date.parse(from)) / 1000
const ordinal = n => n + (n % 100 >= 11 && n % 100 <= 13 ? "th" : {1: "st", 2: "nd", 3: "rd"}[n % 10] || "th")

export function nameOf(job) {
	const {name, files} = job.metadata || {}
	const given = name || files && Object.values(files).flat()[0]
	return typeof given === "string" && given ? given : job.id.slice(0, 8)
}

export const word = status => WORDS[status] || status
export const loads = job => job.status === "running" && job.loading_at && !job.loaded_at

const reason = error => error.category === "cancelled" ? error.message : `${error.category}: ${error.message}`

// Why it waits, what it does, or how it ended.
export function situation(job) {
	if (job.status === "pending") {
		const place = job.position ? `${ordinal(job.position)} in line` : ""
		return [place, job.waiting_for].filter(Boolean).join(" · ") || "waits for a worker"
	}
	if (loads(job)) return "loading the plugin"
	if (job.status === "running") return job.progress ? `${Math.round(job.progress * 100)} %${job.message ? ` · ${job.message}` : ""}` : job.message
	return job.error ? reason(job.error) : ""
}

// Set a text, and touch nothing if it is there already.
export function put(node, text) {
	if (node.textContent !== text) node.textContent = text
}

// A button for something that takes a while and may fail; what failed stays beside it, in the server's words.
export function action(label, busy, run, properties = {}) {
	const problem = el("span", {role: "alert"})
	const button = el("button", {...properties}, label)
	button.onclick = async event => {
		event.stopPropagation()
		button.disabled = true
		put(button, busy)
		put(problem, "")
		try { await run() } catch (error) { put(problem, ` ${error.message}`) }
		button.disabled = false
		put(button, label)
	}
	return el("span", {}, button, problem)
}

// Text as it stands, which the keyboard scrolls.
export const block = (label, ...text) => el("pre", {tabIndex: 0, ariaLabel: label}, ...text)

// A row with a bar and a text in its cell `what`.
export class Row {
	constructor(...names) {
		this.cells = Object.fromEntries(names.map(name => [name, el("td", {className: name})]))
		this.progress = el("progress", {max: 1, ariaLabel: "progress"})
		this.what = el("span")
		this.cells.what.append(this.progress, this.what)
		this.tr = el("tr", {}, ...Object.values(this.cells))
	}

	tell(job, text) {
		this.progress.hidden = !job || job.status !== "running" || !job.progress
		this.progress.value = job ? job.progress : 0
		put(this.what, text)
	}
}

export class JobRow extends Row {
	constructor(job, page) {
		super("status", "plugin", "name", "what", "owner", "age", "took", "actions")
		this.page = page
		this.status = el("button", {className: "plain", ariaExpanded: false}, mark(""), el("span"))
		this.cells.status.append(this.status)
		this.tr.onclick = event => {
			if (!event.target.closest("button:not(.plain)") && !getSelection().toString()) page.toggle(this.job.id)
		}
		this.update(job, Date.now())
	}

	update(job, now) {
		const before = this.job
		this.job = job
		if (before?.status !== job.status) this.showStatus(job)
		put(this.cells.plugin, job.plugin_id)
		put(this.cells.name, this.cells.name.title = nameOf(job))
		put(this.cells.owner, job.owner || "")
		this.tell(job, situation(job))
		this.tick(now)
	}

	showStatus(job) {
		this.tr.className = `job ${job.status}${this.tr.classList.contains("new") ? " new" : ""}`
		put(this.status.firstChild, MARKS[job.status])
		put(this.status.lastChild, ` ${word(job.status)}`)
		this.status.title = job.id
		this.cells.age.title = job.created_at
		const {page} = this, [verb, busy] = ENDS.has(job.status) ? ["retry", "starting"] : ["cancel", "cancelling"]
		const focused = this.cells.actions.contains(document.activeElement)
		this.cells.actions.replaceChildren(...(page.may(verb) ? [action(verb, busy, () => page[verb](this.job), {ariaLabel: `${verb} ${nameOf(job)}`})] : []))
		if (focused) this.status.focus()
	}

	tick(now) {
		const {created_at: made, started_at: began, completed_at: ended} = this.job
		put(this.cells.age, age(seconds(made, now)))
		put(this.cells.took, began ? duration(seconds(began, ended ? Date.parse(ended) : now), !ended) : "")
	}
}

// A tree of JSON that opens on demand.
export function tree(value, name = null) {
	const key = name === null ? "" : el("span", {className: "dim"}, `${name}: `)
	const entries = value !== null && typeof value === "object" ? Object.entries(value) : []
	if (!entries.length) return el("div", {className: name === null ? "tree" : ""}, key, JSON.stringify(value))
	const inner = el("div", {className: "tree"}), fill = () => {
		if (inner.hasChildNodes()) return
		inner.append(...entries.slice(0, 500).map(([key, item]) => tree(item, key)))
		if (entries.length > 500) inner.append(`… ${entries.length - 500} more`)
	}
	if (name === null) { fill(); return inner }
	const box = el("details", {}, el("summary", {}, key, Array.isArray(value) ? `[ ${entries.length} ]` : `{ ${entries.length} }`), inner)
	box.ontoggle = fill
	return box
}

// The text of a stream: chunks with `text` and `final` replace each other until one is final, other texts follow each other.
export class StreamText {
	constructor() {
		this.node = block("stream")
		this.node.className = "stream"
		this.next = 0
		this.parts = []
		this.partial = false
		this.raw = false  // Whether the texts bring their own spaces
	}

	add(index, chunk) {
		if (index < this.next) return true
		if (index > this.next && this.next) return false
		this.next = index + 1
		const end = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 24
		const found = chunk?.text ?? chunk, text = typeof found === "string" ? found : JSON.stringify(chunk)
		const replaces = text === chunk?.text && typeof chunk.final === "boolean"
		if (text === chunk && text !== text.trim()) this.raw = true, this.node.textContent = this.parts.join("")
		if (this.partial && replaces) this.parts.pop(), this.node.lastChild?.remove()
		this.partial = replaces && !chunk.final
		const glue = this.raw || !this.parts.length ? "" : text.length > 40 || /^{|\s/.test(text) ? "\n" : " "
		this.node.append(glue + text)
		this.parts.push(text)
		while (this.node.childNodes.length > 5000) this.node.firstChild.remove(), this.parts.shift()
		if (end) this.node.scrollTop = this.node.scrollHeight
		return true
	}
}

// What a row opens to.
export class JobDetails {
	constructor(job, page) {
		Object.assign(this, {job, page})
		this.stream = new StreamText()
		this.early = []  // Chunks that came before those that were there already
		this.box = el("div", {className: "detail"})
		this.tr = el("tr", {className: "details"}, el("td", {colSpan: page.columns}, this.box))
		this.load()
	}

	async load() {
		try {
			const job = await this.page.get(urlOf(this.job.id))
			this.job = job
			await this.loadChunks()
			const early = this.early || []
			this.early = null
			early.forEach(data => this.stream.add(data.index, data.chunk))
			this.show(job)
		} catch (error) { this.box.replaceChildren(el("p", {role: "alert"}, error.message)) }
	}

	async loadChunks() {
		const {chunks} = this.job
		if (!chunks || chunks.stop <= this.stream.next) return
		const got = await this.page.get(urlOf(this.job.id, `/chunks?start=${Math.max(this.stream.next, chunks.first)}`))
		if (got.first > this.stream.next) this.stream.next = got.first
		got.chunks.forEach((chunk, n) => this.stream.add(got.first + n, chunk))
	}

	chunk(data) {
		if (this.early) return this.early.push(data)
		if (!this.stream.add(data.index, data.chunk)) this.load()
		if (!this.stream.node.isConnected) this.show(this.job)
	}

	update(job) {
		const {status} = this.job
		if (ENDS.has(job.status) !== ENDS.has(status)) return this.load()
		this.job = {...this.job, ...job}
		if (job.status !== status) this.show(this.job)
	}

	section(title, ...content) { return el("div", {}, el("h3", {}, title), ...content) }

	show(job) {
		const parts = []
		if (job.error) parts.push(this.error(job.error))
		if (this.stream.next) parts.push(this.section("stream", this.stream.node))
		if (job.result_type) parts.push(this.section("result", ...this.result(job)))
		if (job.log?.length) parts.push(this.section("log", this.logNode = block("log", ...job.log.map(this.logLine))))
		this.timesBox = el("div", {}, this.times(job))
		const beside = [this.section("times", this.timesBox), this.facts(job)]
		if (job.params && Object.keys(job.params).length) beside.unshift(this.section("parameters", tree(job.params)))
		const top = this.stream.node.scrollTop
		this.box.replaceChildren(el("div", {}, ...parts), el("div", {}, ...beside))
		this.stream.node.scrollTop = top || this.stream.node.scrollHeight
	}

	error(error) {
		const found = [el("p", {className: error.category === "cancelled" ? "" : "bad"}, reason(error))]
		for (const [name, text] of [["Traceback", error.traceback], ["Last on stderr", error.stderr_tail]])
			if (text) found.push(el("details", {}, el("summary", {}, name), block(name, text)))
		return this.section("why it ended", ...found)
	}

	result(job) {
		const type = job.result_type, url = urlOf(job.id, "/result")
		const link = el("a", {href: url, download: ""}, `download ${bytes(type.size)}`), known = !/octet/.test(type.media_type || "octet")
		if (type.kind === "object") return [el("p", {}, `A ${type.type}, which JSON cannot hold.`)]
		if (type.kind !== "json") return [...(known ? [el("img", {src: url, alt: "the result, an image"})] : []), el("p", {}, link, known ? ` · ${type.media_type}` : "")]
		if (type.size > 4 && job.result === null) return [link]
		return [typeof job.result === "string" ? block("result", job.result) : tree(job.result)]
	}

	logLine({time, level, text}) { return el("div", {className: `level-${level}`}, `${String(time).slice(11, 23)} ${level} ${text}`) }

	log(data) {
		if (this.logNode?.isConnected) return this.logNode.append(this.logLine(data))
		this.job.log = [...this.job.log || [], data]
		this.show(this.job)
	}

	// The parts of its time: what began when, up to the next.
	times(job) {
		const at = name => Date.parse(job[name]), parts = []
		const slow = job.loading_at && !(at("loaded_at") - at("loading_at") < 50)  // Else there was nothing to load
		const marks = [["waited", "waits for", at("created_at")], ["loaded", "loads for", slow ? at("loading_at") : NaN], ["ran", "runs for", at(slow ? "loaded_at" : "started_at")]].filter(([, , from]) => from)
		marks.forEach(([past, now, from], n) => {
			const to = marks[n + 1]?.[2] || at("completed_at"), long = (to || Date.now()) - from
			parts.push([past, long, `${to ? past : now} ${duration(long / 1000, !to)}`])
		})
		const bar = el("div", {className: "times", ariaHidden: true}, ...parts.map(([name, long]) => {
			const part = el("span", {className: name})
			part.style.flexGrow = Math.max(0, long)
			return part
		}))
		return el("div", {}, bar, el("div", {className: "legend"}, ...parts.map(([name, , text]) => el("span", {className: name}, text))))
	}

	tick() {
		if (this.timesBox && !ENDS.has(this.job.status)) this.timesBox.replaceChildren(this.times(this.job))
	}

	facts(job) {
		const from = job.retried_from, link = from && el("button", {className: "plain link", onclick: () => this.page.find(from)}, from.slice(0, 8))
		const facts = {id: job.id, worker: job.worker_pid, owner: job.owner, key: job.key, priority: job.priority, attempts: job.attempts > 1 && job.attempts, "retry of": link, created: new Date(job.created_at).toLocaleString()}
		const shown = Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])
		return el("div", {}, el("dl", {}, ...shown), ...(!ENDS.has(job.status) && this.page.may("retry") ? [this.again(job)] : []))
	}

	// To run a job again that still runs, a second click confirms.
	again(job) {
		const box = el("span")
		const no = () => { box.replaceChildren(first); first.focus() }, first = el("button", {onclick: () => {
			box.replaceChildren("It has not ended. Run another? ", action("yes", "starting", () => this.page.retry(job)), " ", el("button", {onclick: no}, "no"))
			box.querySelector("button").focus()
		}}, "run again")
		box.append(first)
		return box
	}
}
