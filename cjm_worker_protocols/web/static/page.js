// The live page: loads jobs and workers, follows the events, and draws what has changed once a frame.

import {StartForm} from "./form.js"
import {AreaPlot, PLOTS, Usage, newSpark, spark} from "./plot.js"
import {ENDS, JobDetails, JobRow, MARKS, Row, action, block, bytes, el, loads, mark, nameOf, put, situation, urlOf, word} from "./view.js"

const $ = id => document.getElementById(id)
const STATUSES = ["running", "pending", "completed", "failed", "cancelled"]
const ROWS = 100  // Jobs in the table before "Show more"
const RANK = {pending: 0, running: 1, completed: 2, failed: 2, cancelled: 2}

// Whether a picture of a job is newer than another.
const newer = (a, b) => a.attempts > b.attempts || a.attempts === b.attempts && RANK[a.status] + a.progress / 2 > RANK[b.status] + b.progress / 2

// Whether a worker that is gone was ended by the manager: by SIGTERM, or without an error.
const asked = worker => [0, 15, 143].includes(worker.signal || worker.exit_code || 0)

const problem = (status, text) => Object.assign(new Error(text), {status})

class Page {
	constructor() {
		this.about = {may: []}
		this.jobs = new Map()  // By id, the newest first
		this.counts = {}
		this.rows = new Map()  // Of the jobs in the table
		this.workers = new Map()  // By pid
		this.workerRows = new Map()
		this.usage = new Usage()
		this.plots = PLOTS.map(plot => new AreaPlot(...plot))
		this.filter = {status: "", plugin: "", text: ""}
		this.limit = ROWS
		this.columns = 7  // Of the table of jobs
		this.mine = new Set()  // Jobs that were started here, whose ends are announced
		this.dirty = {jobs: new Set()}
		this.frame = this.failures = this.drawn = 0  // `drawn` is when the plots were
		this.form = new StartForm($("start-form"), this)
		this.details = null
	}

	may(what) { return this.about.may.includes(what) }

	async ask(path, options = {}) {
		let response
		try { response = await fetch(path, options) } catch { throw problem(0, "The server does not answer.") }
		if (response.ok) return response
		let text = `The server answered ${response.status}.`
		try { const found = await response.json(); text = found.detail || found.title || text } catch { /* not a problem document */ }
		throw problem(response.status, text)
	}

	async get(path) { return (await this.ask(path)).json() }

	async post(path, body) {
		const form = body instanceof FormData
		const response = await this.ask(path, {method: "POST", body: form ? body : JSON.stringify(body || {}), headers: form ? {} : {"content-type": "application/json"}})
		return response.status === 204 ? null : response.json()
	}

	async start(request, files) {
		let body = request
		if (files.length) {
			body = new FormData()
			body.append("plugin_id", request.plugin_id)
			body.append("params", JSON.stringify(request.params))
			for (const [name, file] of files) body.append(name, file, file.name)
		}
		this.began(await this.post("api/jobs", body))
	}

	began(job) {
		this.mine.add(job.id)
		this.receive(job)
		this.draw()
		this.open(job.id)
		this.announce(`Started ${job.plugin_id}`)
	}

	async cancel(job) { this.receive(await this.post(urlOf(job.id, "/cancel"))) }
	async retry(job) { this.began(await this.post(urlOf(job.id, "/retry"))) }

	async begin() {
		const token = /[#&]token=([^&]+)/.exec(location.hash)
		if (token) history.replaceState(null, "", location.pathname + location.search)
		try {
			if (token) await this.post("api/login", {token: decodeURIComponent(token[1])})
			this.about = await this.get("api")
		} catch (error) { return this.refused(error, token) }
		$("login").hidden = true
		$("main").hidden = false
		document.body.className = ""
		document.title = this.about.title
		put($("title"), this.about.title)
		put($("host"), [location.host, this.about.user].filter(Boolean).join(" · "))
		$("workers").hidden = this.about.sees !== "all"
		$("start").hidden = !this.may("start")
		$("workers").open = !matchMedia("(max-width: 800px)").matches
		this.follow()
		this.loadPlugins()
	}

	refused(error, tried) {
		if (error.status === 0) { this.state("offline", "the server does not answer"); setTimeout(() => this.begin(), 2000); return }
		this.state("offline", error.status === 401 ? "not signed in" : "refused")
		$("login").hidden = false
		put($("login-problem"), tried || error.status !== 401 ? error.message : "")
		$("token").select()
	}

	async loadPlugins() {
		try {
			const {plugins} = await this.get("api/plugins")
			this.form.show(plugins)
			this.drawEmpty(this.rows.size)
			const names = new Map(plugins.map(plugin => [plugin.id, plugin.name]))
			$("plugin-filter").replaceChildren(el("option", {value: ""}, "all"), ...[...names].map(([id, name]) => el("option", {value: id}, name)))
		} catch (error) { $("start-form").replaceChildren(el("p", {role: "alert"}, error.message)) }
	}

	// One stream of events for the page and for the job that is open.
	follow(lastId = "") {
		this.source?.close()
		const query = new URLSearchParams()
		if (this.details) query.set("job", this.details.job.id)
		if (lastId) query.set("last_event_id", lastId)
		const source = this.source = new EventSource(`api/events?${query}`)
		this.lastId = lastId
		source.onopen = () => {
			this.failures = 0
			this.live()
			if (!this.lastId || !this.loaded) this.load()
		}
		source.onerror = () => this.lost(source)
		const on = (type, call) => source.addEventListener(type, event => {
			this.lastId = event.lastEventId || this.lastId
			call(JSON.parse(event.data || "{}"))
		})
		on("job", job => this.receive(job))
		on("worker", worker => this.receiveWorker(worker))
		on("manager", ({ready}) => { this.about.ready = ready; this.live() })
		on("usage", usage => { this.usage.add(usage); this.dirty.usage = true; this.later() })
		for (const type of ["chunk", "log"]) on(type, data => { if (this.details?.job.id === data.job_id) this.details[type](data) })
		for (const type of ["reset", "gap"]) on(type, () => this.load())
	}

	lost(source) {
		if (source !== this.source || document.hidden) return
		source.close()
		this.since ??= new Date()
		this.failures += 1
		this.due = Date.now() + 500 * 2 ** Math.min(this.failures, 5)
		this.count()
	}

	count() {
		const left = Math.ceil((this.due - Date.now()) / 1000)
		this.state("offline", `offline since ${this.since.toTimeString().slice(0, 8)}, reconnecting${left > 0 ? ` in ${left} s` : ""}`)
		if (left <= 0) this.reconnect()
	}

	// Ask first: a refusal has a status, which `EventSource` does not tell.
	async reconnect() {
		this.due = 0
		try { this.about = await this.get("api") } catch (error) {
			if (error.status === 401) return this.refused(error)
			return this.lost(this.source)
		}
		this.follow(this.lastId)
	}

	live() { this.state("live", this.about.ready ? "live" : "live · takes no new jobs") }

	state(state, text) {
		if (state === "live") this.since = null
		$("live").dataset.state = state
		$("main").classList.toggle("stale", state === "offline")
		put($("live").firstElementChild, state === "live" ? "●" : "◌")
		put($("live").lastElementChild, text)
	}

	async load() {
		this.touched = new Set()
		try {
			const [{jobs, counts}, workers] = await Promise.all([this.get("api/jobs?limit=1000"), this.about.sees === "all" ? this.get("api/workers") : null])
			const got = new Map(jobs.map(job => [job.id, job])), early = [...this.touched].filter(id => !got.has(id))
			const known = new Map([...early.map(id => [id, null]), ...got])
			for (const id of this.touched) {
				const job = this.jobs.get(id), theirs = got.get(id)
				if (theirs && !newer(job, theirs)) continue
				if (theirs) counts[theirs.status] -= 1
				counts[job.status] += 1
				known.set(id, job)
			}
			Object.assign(this, {jobs: known, counts, loaded: true})
			if (workers) {
				this.workers = new Map(workers.workers.map(worker => [worker.pid, worker]))
				this.usage.add({workers: Object.fromEntries(workers.workers.filter(worker => worker.memory !== null).map(worker => [worker.pid, worker])), memory_limit: workers.memory_limit})
			}
			this.dirty.list = this.dirty.workers = this.dirty.usage = true
			if (this.details) this.details.load()
			this.draw()
			const wanted = /^#job=(.+)/.exec(location.hash)
			if (wanted && !this.details) this.find(wanted[1])
		} catch { this.loaded = false; this.lost(this.source) }
	}

	receive(job) {
		const before = this.jobs.get(job.id)
		if (ENDS.has(before?.status) && newer(before, job)) return
		this.touched?.add(job.id)
		if (before?.status !== job.status) {
			if (before?.position) this.shift(before.position, -1)
			else if (job.position) this.shift(job.position, 1)
			if (before) this.counts[before.status] -= 1
			this.counts[job.status] = (this.counts[job.status] || 0) + 1
			this.dirty.counts = true
		}
		if (!before) { this.jobs = new Map([[job.id, job], ...this.jobs]); if (this.loaded) (this.fresh ??= new Set()).add(job.id); this.dirty.list = true }
		else { this.jobs.set(job.id, {...before, ...job}); this.dirty.jobs.add(job.id) }
		if (before && before.status !== job.status) {
			if (this.filter.status) this.dirty.list = true
			if (ENDS.has(job.status) && (this.mine.has(job.id) || this.details?.job.id === job.id))
				this.announce(`${nameOf(job)} ${word(job.status)}${job.status === "failed" ? `: ${situation(job)}` : ""}`)
		}
		this.dirty.workers = true
		this.later()
	}

	// Those who wait move up or back; the server says so only of the job itself.
	shift(from, by) {
		for (const [id, job] of this.jobs) if (job.status === "pending" && job.position >= from) {
			this.jobs.set(id, {...job, position: job.position + by})
			this.dirty.jobs.add(id)
		}
	}

	receiveWorker(worker) {
		const before = this.workers.get(worker.pid) || {}, job = this.jobs.get(before.job_id)
		if (worker.gone) worker = {...worker, left: Date.now(), job_id: null, plugin_id: job ? job.plugin_id : before.plugin_id}
		this.workers.set(worker.pid, {...before, ...worker})
		this.dirty.workers = true
		this.later()
	}

	announce(text) { put($("announce"), text) }

	later() { if (!this.frame) this.frame = requestAnimationFrame(() => this.draw()) }

	draw() {
		cancelAnimationFrame(this.frame)
		this.frame = 0
		const {dirty} = this, now = Date.now()
		if (dirty.list) this.drawList(now)
		else for (const id of dirty.jobs) {
			const row = this.rows.get(id)
			if (row) row.update(this.jobs.get(id), now)
		}
		if (dirty.jobs.has(this.details?.job.id)) this.details.update(this.jobs.get(this.details.job.id))
		if (dirty.list || dirty.counts) this.drawCounts()
		if (dirty.workers) this.drawWorkers(now)
		if (dirty.usage) this.drawUsage(now)
		this.dirty = {jobs: new Set()}
	}

	matches(job) {
		const {status, plugin, text} = this.filter
		if (status && job.status !== status || plugin && job.plugin_id !== plugin) return false
		return !text || `${job.id} ${job.plugin_id} ${nameOf(job)} ${job.owner || ""} ${situation(job)}`.toLowerCase().includes(text)
	}

	// Put the rows in order; those that are there already stay the same elements.
	drawList(now) {
		if (this.jobs.size > 3000) this.jobs = new Map([...this.jobs].slice(0, 2000))
		const body = $("jobs-table").tBodies[0], shown = []
		let matching = 0
		for (const job of this.jobs.values()) if (this.matches(job) && ++matching <= this.limit) shown.push(job)
		const rows = new Map()
		for (const job of shown) {
			const row = this.rows.get(job.id) || new JobRow(job, this)
			if (row.job !== job) row.update(job, now)
			rows.set(job.id, row)
		}
		const open = rows.has(this.details?.job.id) ? this.details : null
		let place = body.firstChild
		const set = node => {
			if (place === node) place = place.nextSibling
			else body.insertBefore(node, place)
		}
		for (const [id, row] of rows) {
			if (this.fresh?.has(id)) { row.tr.classList.add("new"); setTimeout(() => row.tr.classList.remove("new"), 8000) }
			set(row.tr)
			if (open?.job.id === id) set(open.tr)
		}
		while (place) { const next = place.nextSibling; place.remove(); place = next }
		this.fresh = null
		this.rows = rows
		$("jobs-table").hidden = !shown.length
		this.columns = shown.some(job => job.owner) ? 8 : 7
		$("jobs-table").classList.toggle("no-owner", this.columns === 7)
		if (open) open.tr.firstChild.colSpan = this.columns
		$("more").hidden = matching <= this.limit
		put($("shown"), matching > shown.length ? `${shown.length} of ${matching}` : "")
		this.drawEmpty(shown.length)
	}

	drawEmpty(rows) {
		const box = $("no-jobs")
		box.hidden = rows > 0
		if (rows) return
		if (this.jobs.size) return box.replaceChildren("No job matches. ", el("button", {onclick: () => this.showAll()}, "Show all"))
		const {plugin} = this.form
		if (!plugin || !this.may("start")) return box.replaceChildren("No jobs yet.")
		const params = Object.fromEntries((plugin.parameters || []).filter(p => p.required).map(p => [p.name, "…"]))
		const url = new URL("api/jobs", location.href), auth = this.about.token ? " -H 'Authorization: Bearer TOKEN'" : ""
		box.replaceChildren(el("p", {}, "No jobs yet. Start one above, drop a file on the page, or call:"),
			block("a command that starts a job", `curl ${url}${auth} -H 'Content-Type: application/json' -d '${JSON.stringify({plugin_id: plugin.id, params})}'`))
	}

	drawCounts() {
		STATUSES.forEach((status, n) => {
			const button = $("counters").children[n] || this.newCounter(status, n), count = this.counts[status] || 0
			put(button.querySelector("b"), String(count))
			button.classList.toggle("none", !count)
			button.ariaPressed = this.filter.status === status
		})
	}

	newCounter(status, n) {
		const button = el("button", {className: status, ariaKeyShortcuts: n + 1, onclick: () => this.filterBy(status)},
			mark(MARKS[status]), el("b"), el("span", {}, word(status)), el("kbd", {}, n + 1))
		$("counters").append(button)
		return button
	}

	filterBy(status) {
		this.filter.status = this.filter.status === status ? "" : status
		this.refilter()
	}

	refilter(limit = ROWS) {
		this.limit = limit
		this.dirty.list = true
		this.draw()
	}

	showAll() {
		this.filter = {status: "", plugin: "", text: ""}
		$("search").value = $("plugin-filter").value = ""
		this.refilter()
	}

	drawWorkers(now) {
		for (const [pid, worker] of this.workers) if (now - worker.left > (asked(worker) ? 10000 : 60000)) this.workers.delete(pid)
		const body = $("workers-table").tBodies[0]
		this.hosts = new Set([...this.workers.values()].map(worker => worker.host).filter(Boolean)).size
		for (const [pid, row] of this.workerRows) if (!this.workers.has(pid)) { row.tr.remove(); this.workerRows.delete(pid) }
		for (const [pid, worker] of this.workers) {
			let row = this.workerRows.get(pid)
			if (!row) { row = this.newWorkerRow(); this.workerRows.set(pid, row); body.append(row.tr) }
			this.drawWorker(row, worker)
		}
		$("workers-table").hidden = !this.workers.size
		const alive = [...this.workers.values()].filter(worker => !worker.gone)
		$("no-workers").hidden = this.workers.size > 0
		const used = alive.reduce((sum, worker) => sum + (this.usage.last(worker.pid, "memory") || 0), 0)
		put($("workers-summary"), alive.length ? `${alive.length}${used ? ` · ${bytes(used)}` : ""}` : "")
	}

	newWorkerRow() {
		const row = new Row("status", "pid", "plugin", "lately", "memory", "cpu", "gpu_memory", "what", "actions")
		row.line = newSpark()
		row.cells.status.append(mark(""), el("span"))
		row.cells.lately.append(row.line)
		return row
	}

	drawWorker(row, worker) {
		const {cells} = row, job = this.jobs.get(worker.job_id), key = job ? job.id : ""
		const ended = asked(worker) ? "ended" : "failed", status = worker.gone ? ended : job && loads(job) ? "loading" : worker.status
		const how = worker.signal ? `killed by signal ${worker.signal}` : `exit code ${worker.exit_code}`
		row.tr.className = status
		put(cells.status.firstChild, MARKS[status] || "●")
		put(cells.status.lastChild, ` ${status}`)
		put(cells.pid, `${worker.pid}${this.hosts > 1 && worker.host ? ` on ${worker.host}` : ""}`)
		put(cells.plugin, job ? job.plugin_id : worker.plugin_id || "")
		for (const [, field, text] of PLOTS) {
			const used = this.usage.last(worker.pid, field)
			put(cells[field], worker.gone ? "" : used === null ? "—" : text(used))
			cells[field].title = used === null ? "Not measured: it is new, or on another machine" : ""
		}
		spark(row.line, this.usage.line(worker.pid, "memory"))
		row.tell(job, status === "failed" ? how : job ? `${nameOf(job)}${job.progress ? ` · ${Math.round(job.progress * 100)} %` : ""}` : "")
		if (cells.actions.dataset.job === key) return
		cells.actions.dataset.job = key
		cells.actions.replaceChildren(...(job && this.may("cancel") ? [action("cancel", "cancelling", () => this.cancel(job), {ariaLabel: `cancel ${nameOf(job)}`})] : []))
	}

	drawUsage(now) {
		if (now - this.drawn < 500) return void setTimeout(() => { this.dirty.usage = true; this.later() }, 500)
		this.drawn = now
		$("workers-table").classList.toggle("no-gpu", !this.usage.known("gpu_memory"))
		for (const plot of this.plots) if (this.usage.known(plot.field)) {
			if (!plot.figure.isConnected) $("plots").append(plot.figure)
			plot.draw(this.usage, plot.field === "memory" ? this.usage.limit : null)
		}
		this.drawWorkers(now)
	}

	tick() {
		const now = Date.now()
		for (const row of this.rows.values()) row.tick(now)
		this.details?.tick()
		if (this.due) this.count()
	}

	// The one that the address names; it may be older than those in the list.
	async find(code) {
		try {
			const id = decodeURIComponent(code)
			if (!this.jobs.has(id)) this.receive(await this.get(`api/jobs/${code}`))
			this.draw()
			this.open(id)
		} catch { /* no such job */ }
	}

	open(id) {
		if (!this.rows.has(id)) {
			if (!this.jobs.has(id)) return
			if (!this.matches(this.jobs.get(id))) this.showAll()
			this.refilter(Math.max(this.limit, [...this.jobs.keys()].indexOf(id) + 1))
		}
		this.close(false)
		const row = this.rows.get(id)
		if (!row) return
		row.status.ariaExpanded = true
		this.details = new JobDetails(row.job, this)
		row.tr.after(this.details.tr)
		history.replaceState(null, "", `#job=${encodeURIComponent(id)}`)
		if (!ENDS.has(row.job.status)) this.follow(this.lastId)
		row.status.focus({preventScroll: true})
		row.tr.scrollIntoView({block: "nearest"})
	}

	close(focus = true) {
		if (!this.details) return
		const row = this.rows.get(this.details.job.id)
		this.details.tr.remove()
		this.details = null
		history.replaceState(null, "", location.pathname + location.search)
		if (!row) return
		row.status.ariaExpanded = false
		if (focus) row.status.focus()
	}

	toggle(id) { this.details?.job.id === id ? this.close() : this.open(id) }

	// The row with the focus, or the open one.
	get current() {
		const rows = [...this.rows.values()]
		return rows.find(row => row.tr.contains(document.activeElement)) || this.rows.get(this.details?.job.id)
	}

	move(step) {
		const rows = [...this.rows.values()], at = rows.indexOf(this.current)
		const row = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + step))]
		if (row) { row.status.focus(); row.tr.scrollIntoView({block: "nearest"}) }
	}

	press(name) {
		const button = this.current?.cells.actions.querySelector("button")
		if (button?.textContent === name) button.click()
	}

	newJob() {
		$("start-form").classList.add("open")
		$("start-toggle").ariaExpanded = true
		this.form.focus()
	}

	key(event) {
		if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return
		const {key, target} = event, typing = target.matches("input, select, textarea")
		if (key === "Escape") return typing ? target.blur() : this.close()
		if (typing || $("main").hidden) return
		const keys = {
			"/": () => $("search").focus(), j: () => this.move(1), k: () => this.move(-1), c: () => this.press("cancel"),
			r: () => this.press("retry"), n: () => this.newJob(), "?": () => $("help").showModal(),
		}
		const status = STATUSES[key - 1], call = status ? () => this.filterBy(status) : keys[key]
		if (!call) return
		event.preventDefault()
		call()
	}

	listen() {
		document.onkeydown = event => this.key(event)
		$("help-button").onclick = () => $("help").showModal()
		$("start-toggle").onclick = () => { $("start-toggle").ariaExpanded = $("start-form").classList.toggle("open") }
		$("search").oninput = () => { this.filter.text = $("search").value.trim().toLowerCase(); this.refilter() }
		$("plugin-filter").onchange = () => { this.filter.plugin = $("plugin-filter").value; this.refilter() }
		$("more").onclick = () => this.refilter(this.limit + ROWS)
		$("login").onsubmit = event => {
			event.preventDefault()
			location.hash = `token=${encodeURIComponent($("token").value)}`
			this.begin()
		}
		document.onvisibilitychange = () => {
			if ($("main").hidden) return
			if (!document.hidden) return this.reconnect()
			this.due = 0
			this.source.close()
		}
		this.listenToDrops()
		this.listenToTheme()
		setInterval(() => this.tick(), 1000)
	}

	listenToDrops() {
		const files = event => event.dataTransfer?.types.includes("Files") && this.may("start")
		const show = shown => { $("drop").hidden = !shown }
		document.ondragover = event => { if (files(event)) { event.preventDefault(); show(true) } }
		document.ondragleave = event => { if (!event.relatedTarget) show(false) }
		document.ondrop = event => {
			show(false)
			if (!files(event) || event.defaultPrevented) return
			event.preventDefault()
			this.form.drop(event.dataTransfer.files)
		}
	}

	listenToTheme() {
		const themes = ["system", "light", "dark"]
		let kept = {}
		try { kept = localStorage } catch { /* no storage */ }
		let at = Math.max(0, themes.indexOf(kept.theme))
		const set = () => {
			document.documentElement.dataset.theme = kept.theme = themes[at]
			put($("theme"), `Theme: ${themes[at]}`)
		}
		$("theme").onclick = () => { at = (at + 1) % 3; set() }
		set()
	}
}

const page = window.workersPage = new Page()
page.listen()
page.begin()
