// Plots of what workers use: a ring of points for each, drawn as stacked areas and small lines.

import {bytes} from "./view.js"

const NS = "http://www.w3.org/2000/svg"
const SPAN = 300, POINTS = 200  // Seconds shown, and the most points kept

export function svg(tag, attributes = {}) {
	const made = document.createElementNS(NS, tag)
	for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
	return made
}

export class Usage {
	constructor() {
		this.times = []  // Seconds, of the samples
		this.workers = new Map()  // By pid: an array of {memory, cpu, gpu_memory} or undefined, as long as `times`
		this.limit = null
	}

	add(sample, now = Date.now() / 1000) {
		this.limit = sample.memory_limit
		this.times.push(now)
		for (const pid of Object.keys(sample.workers)) if (!this.workers.has(pid)) this.workers.set(pid, Array(this.times.length - 1).fill(undefined))
		for (const [pid, points] of this.workers) points.push(sample.workers[pid])
		while (this.times.length > POINTS || this.times[0] < now - SPAN) {
			this.times.shift()
			for (const points of this.workers.values()) points.shift()
		}
		for (const [pid, points] of this.workers) if (!points.some(Boolean)) this.workers.delete(pid)
	}

	last(pid, field) {
		const point = (this.workers.get(String(pid)) || []).at(-1)
		return point?.[field] ?? null
	}

	// The values of one worker, without gaps at its ends.
	line(pid, field) { return (this.workers.get(String(pid)) || []).filter(Boolean).map(point => point[field] || 0) }

	known(field) { return [...this.workers.values()].some(points => points.some(point => point?.[field] != null)) }
}

export function spark(node, values) {
	const most = Math.max(...values, 1), step = 80 / Math.max(1, values.length - 1)
	const points = values.map((value, n) => `${(n * step).toFixed(1)},${(15 - 14 * value / most).toFixed(1)}`).join(" ")
	if (node.firstChild.getAttribute("points") !== points) node.firstChild.setAttribute("points", values.length > 1 ? points : "")
}

export const newSpark = () => {
	const node = svg("svg", {class: "spark", viewBox: "0 0 80 16", preserveAspectRatio: "none", "aria-hidden": "true"})
	node.append(svg("polyline", {points: ""}))
	return node
}

// A stacked area of one field over time, with the limit as a line.
export class AreaPlot {
	constructor(title, field, unit, least) {
		Object.assign(this, {title, field, unit, least})  // `least` is what the plot shows at least, so that little looks little
		this.figure = document.createElement("figure")
		this.caption = document.createElement("figcaption")
		this.node = svg("svg", {viewBox: `0 0 ${SPAN} 64`, preserveAspectRatio: "none", role: "img"})
		this.figure.append(this.caption, this.node)
	}

	draw(usage, limit) {
		const {times, workers} = usage, end = times.at(-1) || 0, minutes = Math.max(1, Math.ceil((end - times[0]) / 60)) || 1
		const x = time => (SPAN * (1 - (end - time) / minutes / 60)).toFixed(1)
		let low = times.map(() => 0)
		const bands = []
		let n = 0
		for (const [pid, points] of workers) {
			const high = points.map((point, i) => low[i] + (point?.[this.field] || 0))
			bands.push([pid, low, high, n++ % 3])
			low = high
		}
		const most = Math.max(...low, this.least), beyond = limit && limit > 4 * most
		const top = (limit && !beyond ? Math.max(limit, most) : most) * 1.05 || 1
		const y = value => (64 - 64 * value / top).toFixed(1)
		const parts = bands.map(([pid, from, to, color]) => {
			const upper = times.map((time, i) => `${x(time)},${y(to[i])}`), lower = times.map((time, i) => `${x(time)},${y(from[i])}`).reverse()
			const path = svg("path", {opacity: .85 - .22 * color, d: `M${[...upper, ...lower].join("L")}Z`}), name = svg("title")
			name.textContent = `worker ${pid}`
			path.append(name)
			return path
		})
		if (limit && !beyond) parts.push(svg("line", {x1: 0, x2: SPAN, y1: y(limit), y2: y(limit)}))
		const now = this.unit(low.at(-1) || 0), of = limit ? ` of ${this.unit(limit)}` : ""
		this.caption.textContent = `${this.title}: ${now}${of}, peak ${this.unit(Math.max(0, ...low))} in ${minutes} min`
		this.node.setAttribute("aria-label", `${this.caption.textContent}. The table above has the numbers of each worker.`)
		this.node.replaceChildren(...parts)
	}
}

export const PLOTS = [
	["Memory", "memory", bytes, 1e6],
	["CPU", "cpu", cores => `${Math.round(cores * 100)} %`, 1],
	["GPU memory", "gpu_memory", bytes, 1e6],
]
