// How a job looks: texts for people, rows that touch only what has changed, and what a row opens to.

export const MARKS = {pending: "◌", running: "●", completed: "✓", failed: "✕", cancelled: "⊘", idle: "○", standby: "○", starting: "◌", stopping: "◌", gone: "✕"}
export const WORDS = {pending: "waiting", running: "running", completed: "done", failed: "failed", cancelled: "cancelled"}
export const ENDS = new Set(["completed", "failed", "cancelled"])

// Make an element. Text goes in as text, never as HTML.
export function el(tag, properties = {}, ...children) {
	const made = document.createElement(tag)
	for (const [name, value] of Object.entries(properties)) {
		if (value === undefined || value === null || value === false) continue
		if (name in made && name !== "list" && name !== "form") made[name] = value
		else made.setAttribute(name, value === true ? "" : value)
	}
	made.append(...children.filter(child => child !== null && child !== undefined))
	return made
}

export function bytes(n) {
	if (n === null || n === undefined) return "—"
	for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
		if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${unit}`
	return `${n} B`
}

export function duration(seconds) {
	if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`
	const s = Math.round(seconds)
	if (s < 60) return `${s} s`
	if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`
	return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`
}

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

// Why it waits, what it does, or how it ended.
export function situation(job) {
	if (job.status === "pending") {
		const place = job.position ? `${ordinal(job.position)} in line` : ""
		return [place, job.waiting_for].filter(Boolean).join(" · ") || "waits for a worker"
	}
	if (job.status === "running") return job.message
	if (job.error && job.status === "failed") return `${job.error.category}: ${job.error.message}`
	return job.error ? job.error.message : ""
}

export function took(job, now) {
	if (!job.started_at) return ""
	return duration(seconds(job.started_at, job.completed_at ? Date.parse(job.completed_at) : now))
}

// Set a text, and touch nothing if it is there already.
export function put(node, text) {
	if (node.textContent !== text) node.textContent = text
}

// A button for something that takes a while and may fail; what failed stays beside it, in the server's words.
export function action(label, busy, run, properties = {}) {
	const problem = el("span", {role: "alert"})
	const button = el("button", {type: "button", ...properties}, label)
	button.addEventListener("click", async event => {
		event.stopPropagation()
		button.disabled = true
		put(button, busy)
		put(problem, "")
		try { await run() } catch (error) { put(problem, ` ${error.message}`) }
		button.disabled = false
		put(button, label)
	})
	return el("span", {}, button, problem)
}

export class JobRow {
	constructor(job, page) {
		this.page = page
		this.status = el("button", {type: "button", className: "plain", "aria-expanded": "false"}, el("span", {className: "mark", "aria-hidden": "true"}), el("span"))
		this.cells = Object.fromEntries(["plugin", "name", "what", "owner", "age", "took", "actions"].map(name => [name, el("td", {className: name})]))
		for (const name of ["age", "took"]) this.cells[name].classList.add("number")
		this.progress = el("progress", {max: 1, hidden: true, "aria-label": "progress"})
		this.what = el("span")
		this.cells.what.append(this.progress, this.what)
		this.tr = el("tr", {className: "job"}, el("td", {className: "status"}, this.status), ...Object.values(this.cells))
		this.tr.addEventListener("click", event => {
			if (!event.target.closest("a, button:not(.plain), input, summary") && !getSelection().toString()) page.toggle(this.job.id)
		})
		this.update(job, Date.now())
	}

	update(job, now) {
		const before = this.job
		this.job = job
		if (!before || before.status !== job.status) this.showStatus(job)
		put(this.cells.plugin, job.plugin_id)
		put(this.cells.name, nameOf(job))
		put(this.cells.owner, job.owner || "")
		const running = job.status === "running"
		if (running) this.progress.value = job.progress
		this.progress.hidden = !running
		put(this.what, running ? `${Math.round(job.progress * 100)} %  ${job.message}` : situation(job))
		this.tick(now)
	}

	showStatus(job) {
		this.tr.className = `job ${job.status}${this.tr.classList.contains("new") ? " new" : ""}`
		put(this.status.firstChild, MARKS[job.status])
		put(this.status.lastChild, " " + WORDS[job.status])
		this.status.title = job.id
		const {page} = this, ended = ENDS.has(job.status), focused = this.cells.actions.contains(document.activeElement)
		this.cells.actions.replaceChildren()
		if (!ended && page.may("cancel")) this.cells.actions.append(action("cancel", "cancelling", () => page.cancel(this.job), {"aria-label": `cancel ${nameOf(job)}`}))
		if (ended && page.may("retry")) this.cells.actions.append(action("retry", "starting", () => page.retry(this.job), {"aria-label": `retry ${nameOf(job)}`}))
		if (focused) this.status.focus()
	}

	tick(now) {
		put(this.cells.age, age(seconds(this.job.created_at, now)))
		put(this.cells.took, took(this.job, now))
		this.cells.age.title = this.job.created_at
	}
}

// A tree of JSON that opens on demand.
export function tree(value, name = null) {
	const label = name === null ? "" : `${name}: `
	if (value === null || typeof value !== "object") return el("div", {}, label + JSON.stringify(value))
	const entries = Object.entries(value)
	const opening = Array.isArray(value) ? `[ ${entries.length} ]` : `{ ${entries.length} }`
	const box = el("details", {}, el("summary", {}, label + opening))
	const fill = () => {
		if (box.childElementCount > 1) return
		const inner = el("div", {className: "tree"}, ...entries.slice(0, 500).map(([key, item]) => tree(item, key)))
		if (entries.length > 500) inner.append(`… ${entries.length - 500} more`)
		box.append(inner)
	}
	box.addEventListener("toggle", fill)
	if (name === null) { box.open = true; fill() }
	return box
}

// The text of a stream: chunks with `text` and `final` replace each other until one is final, other texts follow each other.
export class StreamText {
	constructor() {
		this.node = el("pre", {className: "stream", tabIndex: 0, "aria-label": "stream"})
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
		const kind = chunk !== null && typeof chunk === "object" && typeof chunk.text === "string"
		const text = kind ? chunk.text : typeof chunk === "string" ? chunk : JSON.stringify(chunk)
		const replaces = kind && typeof chunk.final === "boolean"
		if (!replaces && typeof chunk === "string" && text !== text.trim()) this.raw = true, this.node.textContent = this.parts.join("")
		if (this.partial && replaces) this.parts.pop(), this.node.lastChild && this.node.lastChild.remove()
		this.partial = replaces && !chunk.final
		const glue = this.raw || !this.parts.length ? "" : text.length > 40 || /\s/.test(text) ? "\n" : " "
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
		this.page = page
		this.job = job
		this.stream = new StreamText()
		this.early = []  // Chunks that came before those that were there already
		this.box = el("div", {className: "detail"})
		this.tr = el("tr", {className: "details"}, el("td", {colSpan: page.columns}, this.box))
		this.load()
	}

	async load() {
		try {
			const job = await this.page.get(`api/jobs/${encodeURIComponent(this.job.id)}`)
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
		const got = await this.page.get(`api/jobs/${encodeURIComponent(this.job.id)}/chunks?start=${Math.max(this.stream.next, chunks.first)}`)
		if (got.first > this.stream.next) this.stream.next = got.first
		got.chunks.forEach((chunk, n) => this.stream.add(got.first + n, chunk))
	}

	chunk(data) {
		if (this.early) return this.early.push(data)
		if (!this.stream.add(data.index, data.chunk)) this.load()
		if (!this.stream.node.isConnected) this.show(this.job)
	}

	update(job) {
		if (ENDS.has(job.status) !== ENDS.has(this.job.status)) this.load()
		else if (job.status !== this.job.status) { this.job = {...this.job, ...job}; this.show(this.job) }
	}

	section(title, ...content) { return el("div", {}, el("h3", {}, title), ...content) }

	show(job) {
		const parts = []
		if (this.stream.next) parts.push(this.section("stream", this.stream.node))
		if (job.error) parts.push(this.error(job.error))
		if (job.result_type) parts.push(this.section("result", ...this.result(job)))
		if (job.params) parts.push(this.section("parameters", tree(job.params)))
		if (job.log && job.log.length) parts.push(this.section("log", this.logNode = el("pre", {tabIndex: 0, "aria-label": "log"}, ...job.log.map(line => this.logLine(line)))))
		this.timesBox = el("div", {}, this.times(job))
		parts.push(this.section("times", this.timesBox, this.facts(job)))
		const top = this.stream.node.scrollTop
		this.box.replaceChildren(...parts)
		this.stream.node.scrollTop = top || this.stream.node.scrollHeight
	}

	error(error) {
		const code = error.signal ? ` (signal ${error.signal})` : error.exit_code ? ` (exit code ${error.exit_code})` : ""
		const found = [el("p", {className: error.category === "cancelled" ? "" : "bad"}, `${error.category}: ${error.message}${code}`)]
		for (const [name, text] of [["Traceback", error.traceback], ["Last on stderr", error.stderr_tail]])
			if (text) found.push(el("details", {}, el("summary", {}, name), el("pre", {tabIndex: 0, "aria-label": name}, text)))
		return this.section("error", ...found)
	}

	result(job) {
		const type = job.result_type, url = `api/jobs/${encodeURIComponent(job.id)}/result`
		if (type.kind === "json") {
			if (type.size > 2 && job.result === null) return [el("a", {href: url, download: ""}, `download (${bytes(type.size)})`)]
			if (typeof job.result === "string") return [el("pre", {tabIndex: 0, "aria-label": "result"}, job.result)]
			return [tree(job.result)]
		}
		if (type.kind === "object") return [el("p", {}, `A ${type.type}, which JSON cannot hold.`)]
		const link = el("a", {href: url, download: ""}, `download (${type.media_type}, ${bytes(type.size)})`)
		return type.media_type.startsWith("image/") ? [el("img", {src: url, alt: "the result, an image"}), el("p", {}, link)] : [link]
	}

	logLine({time, level, text}) { return el("div", {className: `level-${level}`}, `${String(time).slice(11, 23)} ${level} ${text}`) }

	log(data) {
		if (this.logNode && this.logNode.isConnected) return this.logNode.append(this.logLine(data))
		this.job.log = [...this.job.log || [], data]
		this.show(this.job)
	}

	times(job) {
		const created = Date.parse(job.created_at), end = job.completed_at ? Date.parse(job.completed_at) : Date.now()
		const began = job.started_at ? Date.parse(job.started_at) : end
		const bar = el("div", {className: "times", "aria-hidden": "true"}, el("span"), el("span", {className: "ran"}))
		bar.firstChild.style.flex = String(Math.max(0, began - created))
		bar.lastChild.style.flex = String(Math.max(0, end - began))
		const ran = job.started_at ? `, ${ENDS.has(job.status) ? "ran" : "runs for"} ${duration((end - began) / 1000)}` : ""
		return el("div", {}, bar, el("span", {}, `waited ${duration((began - created) / 1000)}${ran}`))
	}

	tick() {
		if (this.timesBox && !ENDS.has(this.job.status)) this.timesBox.replaceChildren(this.times(this.job))
	}

	facts(job) {
		const facts = {id: job.id, worker: job.worker_pid, attempts: job.attempts, priority: job.priority, "retry of": job.retried_from, created: new Date(job.created_at).toLocaleString()}
		const shown = Object.entries(facts).filter(([, value]) => value).map(([name, value]) => el("span", {}, el("span", {className: "dim"}, `${name} `), String(value)))
		const again = !ENDS.has(job.status) && this.page.may("retry") ? [this.again(job)] : []
		return el("div", {className: "facts"}, ...shown, ...again)
	}

	// To run a job again that still runs, a second click confirms.
	again(job) {
		const box = el("span")
		const first = el("button", {type: "button"}, "run again")
		first.addEventListener("click", () => {
			const no = el("button", {type: "button"}, "no")
			no.addEventListener("click", () => { box.replaceChildren(first); first.focus() })
			box.replaceChildren("It is still running. Run again? ", action("yes", "starting", () => this.page.retry(job)), " ", no)
			box.querySelector("button").focus()
		})
		box.append(first)
		return box
	}
}
