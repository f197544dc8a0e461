// The live page: loads jobs and workers, follows the events, and draws what has changed once a frame.

import {StartForm} from "./form.js"
import {AreaPlot, PLOTS, Usage, newSpark, spark} from "./plot.js"
import {ENDS, JobDetails, JobRow, MARKS, WORDS, action, bytes, el, nameOf, put, situation} from "./view.js"

const $ = id => document.getElementById(id)
const STATUSES = ["running", "pending", "completed", "failed", "cancelled"]
const ROWS = 100  // Jobs in the table before "Show more"
const RANK = {pending: 0, running: 1, completed: 2, failed: 2, cancelled: 2}

// Whether a picture of a job is newer than another.
const newer = (a, b) => a.attempts > b.attempts || a.attempts === b.attempts && RANK[a.status] + a.progress / 2 > RANK[b.status] + b.progress / 2

class Problem extends Error {
	constructor(status, text) { super(text); this.status = status }
}

class Page {
	constructor() {
		this.about = {may: [], sees: "own"}
		this.jobs = new Map()  // By id, the newest first
		this.counts = {}
		this.rows = new Map()  // Of the jobs in the table
		this.workers = new Map()  // By pid
		this.workerRows = new Map()
		this.usage = new Usage()
		this.plots = new Map()
		this.filter = {status: "", plugin: "", text: ""}
		this.limit = ROWS
		this.columns = 7  // Of the table of jobs
		this.mine = new Set()  // Jobs that were started here, whose ends are announced
		this.dirty = {jobs: new Set()}
		this.frame = 0
		this.drawn = 0  // When the plots were drawn last
		this.form = new StartForm($("start-form"), this)
		this.details = null
	}

	may(what) { return this.about.may.includes(what) }

	// Requests

	async ask(path, options = {}) {
		let response
		try { response = await fetch(path, {...options, credentials: "same-origin"}) } catch { throw new Problem(0, "The server does not answer.") }
		if (response.ok) return response
		let text = `The server answered ${response.status}.`
		try { const found = await response.json(); text = found.detail || found.title || text } catch { /* not a problem document */ }
		throw new Problem(response.status, text)
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

	async cancel(job) { this.receive(await this.post(`api/jobs/${encodeURIComponent(job.id)}/cancel`)) }
	async retry(job) { this.began(await this.post(`api/jobs/${encodeURIComponent(job.id)}/retry`)) }

	// Loading and following

	async begin() {
		const token = /[#&]token=([^&]+)/.exec(location.hash)
		if (token) history.replaceState(null, "", location.pathname + location.search)
		try {
			if (token) await this.post("api/login", {token: decodeURIComponent(token[1])})
			this.about = await this.get("api")
		} catch (error) { return this.refused(error) }
		$("login").hidden = true
		$("main").hidden = false
		document.title = this.about.title
		put($("title"), this.about.title)
		put($("host"), [location.host, this.about.user].filter(Boolean).join(" · "))
		$("workers").hidden = this.about.sees !== "all"
		$("start").hidden = !this.may("start")
		if (matchMedia("(max-width: 700px)").matches) $("workers").open = false
		this.follow()
		this.loadPlugins()
	}

	refused(error) {
		if (error.status === 0) { this.state("offline", "the server does not answer"); setTimeout(() => this.begin(), 2000); return }
		this.state("offline", error.status === 401 ? "not signed in" : "refused")
		$("login").hidden = false
		put($("login-problem"), error.status === 401 ? "" : error.message)
		$("token").focus()
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
		if (this.source) this.source.close()
		clearTimeout(this.again)
		const query = new URLSearchParams()
		if (this.details) query.set("job", this.details.job.id)
		if (lastId) query.set("last_event_id", lastId)
		const source = this.source = new EventSource(`api/events${query.size ? `?${query}` : ""}`)
		this.lastId = lastId
		source.onopen = () => {
			this.failures = 0
			this.state("live", "live")
			if (!this.lastId || !this.loaded) this.load()
		}
		source.onerror = () => this.lost(source)
		const on = (type, call) => source.addEventListener(type, event => {
			if (event.lastEventId) this.lastId = event.lastEventId
			call(event.data ? JSON.parse(event.data) : {})
		})
		const open = (method, data) => { if (this.details && this.details.job.id === data.job_id) this.details[method](data) }
		on("job", job => this.receive(job))
		on("worker", worker => this.receiveWorker(worker))
		on("usage", usage => { this.usage.add(usage); this.dirty.usage = true; this.later() })
		for (const type of ["chunk", "log"]) on(type, data => open(type, data))
		for (const type of ["reset", "gap"]) on(type, () => this.load())
	}

	lost(source) {
		if (source !== this.source || document.hidden) return
		this.since = this.since || new Date()
		this.failures = (this.failures || 0) + 1
		source.close()
		const delay = Math.min(15, 2 ** Math.min(this.failures, 4) / 2)
		let left = delay
		const count = () => {
			if (source !== this.source) return
			this.state("offline", `offline since ${this.since.toTimeString().slice(0, 8)}, reconnecting in ${Math.ceil(left)} s`)
			if (left <= 0) return this.reconnect()
			left -= 1
			this.again = setTimeout(count, 1000 * Math.min(1, left + 1))
		}
		count()
	}

	// Ask first: a refusal has a status, which `EventSource` does not tell.
	async reconnect() {
		try { this.about = await this.get("api") } catch (error) {
			if (error.status === 401) return this.refused(error)
			return this.lost(this.source)
		}
		this.follow(this.lastId)
	}

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
			const [jobs, workers] = await Promise.all([this.get("api/jobs?limit=1000"), this.about.sees === "all" ? this.get("api/workers") : null])
			const known = new Map(), {counts} = jobs
			for (const id of this.touched) if (!jobs.jobs.some(job => job.id === id)) { known.set(id, this.jobs.get(id)); counts[known.get(id).status] += 1 }
			for (const job of jobs.jobs) {
				const own = this.touched.has(job.id) && newer(this.jobs.get(job.id), job) ? this.jobs.get(job.id) : job
				known.set(job.id, own)
				counts[job.status] -= 1
				counts[own.status] += 1
			}
			this.jobs = known
			this.loaded = true
			this.counts = counts
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
		if (before && ENDS.has(before.status) && newer(before, job)) return
		if (this.touched) this.touched.add(job.id)
		if (!before || before.status !== job.status) {
			if (before && before.position) this.shift(before.position, -1)
			else if (job.position) this.shift(job.position, 1)
			if (before) this.counts[before.status] -= 1
			this.counts[job.status] = (this.counts[job.status] || 0) + 1
			this.dirty.counts = true
		}
		if (!before) { this.jobs = new Map([[job.id, job], ...this.jobs]); if (this.loaded) this.fresh = (this.fresh || new Set()).add(job.id); this.dirty.list = true }
		else { this.jobs.set(job.id, {...before, ...job}); this.dirty.jobs.add(job.id) }
		if (before && before.status !== job.status) {
			if (this.filter.status) this.dirty.list = true
			if (ENDS.has(job.status) && (this.mine.has(job.id) || this.details && this.details.job.id === job.id))
				this.announce(`${nameOf(job)} ${WORDS[job.status]}${job.status === "failed" ? `: ${situation(job)}` : ""}`)
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
		const before = this.workers.get(worker.pid) || {}
		this.workers.set(worker.pid, {...before, ...worker, ...(worker.gone ? {left: Date.now(), job_id: null} : {})})
		this.dirty.workers = true
		this.later()
	}

	announce(text) { put($("announce"), text) }

	// Drawing

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
		if (this.details && dirty.jobs.has(this.details.job.id)) this.details.update(this.jobs.get(this.details.job.id))
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
		const open = this.details && rows.has(this.details.job.id) ? this.details : null
		let place = body.firstChild
		const set = node => {
			if (place === node) place = place.nextSibling
			else body.insertBefore(node, place)
		}
		for (const [id, row] of rows) {
			if (this.fresh && this.fresh.has(id)) { row.tr.classList.add("new"); setTimeout(() => row.tr.classList.remove("new"), 8000) }
			set(row.tr)
			if (open && open.job.id === id) set(open.tr)
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
		if (this.jobs.size) return box.replaceChildren("No job matches. ", el("button", {type: "button", onclick: () => this.showAll()}, "Show all"))
		const plugin = this.form.plugin || {id: "PLUGIN", parameters: []}
		const params = Object.fromEntries((plugin.parameters || []).filter(parameter => parameter.required).map(parameter => [parameter.name, "…"]))
		const url = new URL("api/jobs", location.href), auth = this.about.token ? " -H 'Authorization: Bearer TOKEN'" : ""
		box.replaceChildren(el("p", {}, "No jobs yet. Start one above, drop a file on the page, or call:"),
			el("pre", {tabIndex: 0, "aria-label": "a command that starts a job"}, `curl ${url}${auth} -H 'Content-Type: application/json' -d '${JSON.stringify({plugin_id: plugin.id, params})}'`))
	}

	drawCounts() {
		STATUSES.forEach((status, n) => {
			const button = $("counters").children[n] || this.newCounter(status, n)
			put(button.querySelector("b"), String(this.counts[status] || 0))
			button.setAttribute("aria-pressed", String(this.filter.status === status))
		})
	}

	newCounter(status, n) {
		const button = el("button", {type: "button", "aria-keyshortcuts": String(n + 1), onclick: () => this.filterBy(status)}, el("b"), ` ${WORDS[status]} `, el("kbd", {}, String(n + 1)))
		$("counters").append(button)
		return button
	}

	filterBy(status) {
		this.filter.status = this.filter.status === status ? "" : status
		this.refilter()
	}

	refilter() {
		this.limit = ROWS
		this.dirty.list = true
		this.draw()
	}

	showAll() {
		this.filter = {status: "", plugin: "", text: ""}
		$("search").value = $("plugin-filter").value = ""
		this.refilter()
	}

	drawWorkers(now) {
		for (const [pid, worker] of this.workers) if (worker.left && now - worker.left > 60000) this.workers.delete(pid)
		const body = $("workers-table").tBodies[0]
		this.hosts = new Set([...this.workers.values()].map(worker => worker.host).filter(Boolean)).size
		for (const [pid, row] of this.workerRows) if (!this.workers.has(pid)) { row.tr.remove(); this.workerRows.delete(pid) }
		for (const [pid, worker] of this.workers) {
			let row = this.workerRows.get(pid)
			if (!row) { row = this.newWorkerRow(pid); this.workerRows.set(pid, row); body.append(row.tr) }
			this.drawWorker(row, worker)
		}
		$("workers-table").hidden = !this.workers.size
		const alive = [...this.workers.values()].filter(worker => !worker.gone)
		$("no-workers").hidden = this.workers.size > 0
		put($("no-workers"), "No worker runs. One starts with the first job.")
		const used = alive.reduce((sum, worker) => sum + (this.usage.last(worker.pid, "memory") || 0), 0)
		put($("workers-summary"), alive.length ? `${alive.length}${used ? ` · ${bytes(used)}` : ""}` : "")
	}

	newWorkerRow(pid) {
		const cells = Object.fromEntries(["status", "pid", "plugin", "lately", "memory", "cpu", "gpu", "what", "actions"].map(name => [name, el("td", {className: name})]))
		for (const name of ["memory", "cpu", "gpu"]) cells[name].classList.add("number")
		const line = newSpark(), progress = el("progress", {max: 1, hidden: true, "aria-label": "progress"}), what = el("span")
		cells.lately.append(line)
		cells.what.append(progress, what)
		return {cells, line, progress, what, tr: el("tr", {}, ...Object.values(cells))}
	}

	drawWorker({cells, line, progress, what, tr}, worker) {
		const job = worker.job_id ? this.jobs.get(worker.job_id) : null, status = worker.gone ? "gone" : worker.status
		const asked = [null, undefined, 0, 15, 143].includes(worker.signal || worker.exit_code)  // SIGTERM is the manager's own
		const how = asked ? "ended" : worker.signal ? `killed by signal ${worker.signal}` : `exit code ${worker.exit_code}`
		tr.className = `${status}${worker.gone && !asked ? " failed" : ""}`
		put(cells.status, `${MARKS[status] || "●"} ${status}`)
		put(cells.pid, `${worker.pid}${this.hosts > 1 && worker.host ? ` on ${worker.host}` : ""}`)
		put(cells.plugin, worker.plugin_id || "")
		for (const [name, field, text] of [["memory", "memory", bytes], ["cpu", "cpu", cores => cores === null ? "—" : `${Math.round(cores * 100)} %`], ["gpu", "gpu_memory", bytes]])
			put(cells[name], worker.gone ? "" : text(this.usage.last(worker.pid, field)))
		spark(line, this.usage.line(worker.pid, "memory"))
		progress.hidden = !job || job.status !== "running"
		if (job) progress.value = job.progress
		put(what, worker.gone ? how : job ? `${nameOf(job)}${job.status === "running" ? `  ${Math.round(job.progress * 100)} %` : ""}` : "")
		if (cells.actions.dataset.job === (worker.job_id || "")) return
		cells.actions.dataset.job = worker.job_id || ""
		cells.actions.replaceChildren(...(job && this.may("cancel") ? [action("cancel", "cancelling", () => this.cancel(job), {"aria-label": `cancel ${nameOf(job)}`})] : []))
	}

	drawUsage(now) {
		if (now - this.drawn < 500) return void setTimeout(() => { this.dirty.usage = true; this.later() }, 500)
		this.drawn = now
		$("workers-table").classList.toggle("no-gpu", !this.usage.known("gpu_memory"))
		for (const [title, field, unit, least] of PLOTS) {
			if (!this.usage.known(field)) continue
			if (!this.plots.has(field)) {
				const plot = new AreaPlot(title, field, unit, least)
				this.plots.set(field, plot)
				$("plots").append(plot.figure)
			}
			this.plots.get(field).draw(this.usage, field === "memory" ? this.usage.limit : null)
		}
		this.drawWorkers(now)
	}

	tick() {
		const now = Date.now()
		for (const row of this.rows.values()) row.tick(now)
		if (this.details) this.details.tick()
	}

	// Opening a job

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
			this.limit = Math.max(this.limit, [...this.jobs.keys()].indexOf(id) + 1)
			this.dirty.list = true
			this.draw()
		}
		this.close(false)
		const row = this.rows.get(id)
		if (!row) return
		row.status.setAttribute("aria-expanded", "true")
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
		row.status.setAttribute("aria-expanded", "false")
		if (focus) row.status.focus()
	}

	toggle(id) { this.details && this.details.job.id === id ? this.close() : this.open(id) }

	// The row with the focus, or the open one.
	get current() {
		const rows = [...this.rows.values()]
		return rows.find(row => row.tr.contains(document.activeElement)) || this.details && this.rows.get(this.details.job.id) || null
	}

	move(step) {
		const rows = [...this.rows.values()], at = rows.indexOf(this.current)
		const row = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + step))]
		if (row) { row.status.focus(); row.tr.scrollIntoView({block: "nearest"}) }
	}

	press(name) {
		const row = this.current, button = row && row.cells.actions.querySelector("button")
		if (button && button.textContent === name) button.click()
	}

	newJob() {
		const form = $("start-form")
		form.classList.add("open")
		$("start-toggle").setAttribute("aria-expanded", "true")
		this.form.focus()
	}

	key(event) {
		if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return
		const {key, target} = event
		if (key === "Escape") {
			if (target.matches("input, select, textarea")) target.blur()
			else this.close()
			return
		}
		if (target.matches("input, select, textarea") || $("main").hidden) return
		const keys = {
			"/": () => $("search").focus(), j: () => this.move(1), k: () => this.move(-1), c: () => this.press("cancel"),
			r: () => this.press("retry"), n: () => this.newJob(), "?": () => $("help").showModal(),
			...Object.fromEntries(STATUSES.map((status, n) => [String(n + 1), () => this.filterBy(status)])),
		}
		if (!(key in keys)) return
		event.preventDefault()
		keys[key]()
	}

	// What a person does

	listen() {
		document.addEventListener("keydown", event => this.key(event))
		$("help-button").addEventListener("click", () => $("help").showModal())
		$("start-toggle").addEventListener("click", () => {
			const open = $("start-form").classList.toggle("open")
			$("start-toggle").setAttribute("aria-expanded", String(open))
		})
		$("search").addEventListener("input", () => { this.filter.text = $("search").value.trim().toLowerCase(); this.refilter() })
		$("plugin-filter").addEventListener("change", () => { this.filter.plugin = $("plugin-filter").value; this.refilter() })
		$("more").addEventListener("click", () => { this.limit += ROWS; this.dirty.list = true; this.draw() })
		$("login").addEventListener("submit", event => {
			event.preventDefault()
			location.hash = `token=${encodeURIComponent($("token").value)}`
			this.begin()
		})
		document.addEventListener("visibilitychange", () => {
			if ($("main").hidden) return
			if (document.hidden) { clearTimeout(this.again); this.source.close() }
			else this.reconnect()
		})
		this.listenToDrops()
		this.listenToTheme()
		setInterval(() => this.tick(), 1000)
	}

	listenToDrops() {
		const files = event => event.dataTransfer && [...event.dataTransfer.types].includes("Files") && this.may("start")
		const show = shown => { $("drop").hidden = !shown }
		document.addEventListener("dragover", event => { if (files(event)) { event.preventDefault(); show(true) } })
		document.addEventListener("dragleave", event => { if (!event.relatedTarget) show(false) })
		document.addEventListener("drop", event => {
			show(false)
			if (!files(event) || event.defaultPrevented) return
			event.preventDefault()
			this.form.drop(event.dataTransfer.files)
		})
	}

	listenToTheme() {
		const themes = ["system", "light", "dark"]
		let at = 0
		try { at = Math.max(0, themes.indexOf(localStorage.theme)) } catch { /* no storage */ }
		const set = () => {
			document.documentElement.dataset.theme = themes[at]
			put($("theme"), `Theme: ${themes[at]}`)
			try { localStorage.theme = themes[at] } catch { /* no storage */ }
		}
		$("theme").addEventListener("click", () => { at = (at + 1) % 3; set() })
		set()
	}
}

const page = window.workersPage = new Page()
page.listen()
page.begin()
