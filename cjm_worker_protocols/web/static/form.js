// The form that starts a job, made of the parameters of a plugin.

import {el, put} from "./view.js"

const isPath = schema => schema.format === "path"
const takesFiles = schema => isPath(schema) || (schema.type === "array" && schema.items && isPath(schema.items))

const usable = plugin => plugin.configured && !plugin.problem

// As on the command line: what is JSON is what it says, any other text is text.
function parse(text) {
	try { return JSON.parse(text) } catch { return text }
}

// One parameter: its element, and how to read its value. `undefined` leaves the parameter out.
function field(parameter) {
	const {name, schema, required} = parameter
	const starts = parameter.default
	const label = el("span", {}, name + (required ? " *" : ""))
	const common = {name, required}, wrap = (input, more = "") => el("label", {className: `field${more}`}, label, input)
	if (takesFiles(schema)) {
		const input = el("input", {...common, type: "file", multiple: !isPath(schema)})
		return {node: wrap(input), input, files: () => [...input.files]}
	}
	if (schema.enum) {
		const select = el("select", common, ...(required ? [] : [el("option", {value: ""}, "—")]), ...schema.enum.map((value, n) => el("option", {value: n}, String(value))))
		if (starts !== undefined && schema.enum.includes(starts)) select.value = schema.enum.indexOf(starts)
		return {node: wrap(select), read: () => select.value === "" ? undefined : schema.enum[select.value]}
	}
	if (schema.type === "boolean") {
		const box = el("input", {type: "checkbox", name, checked: starts === true})
		return {node: wrap(box), read: () => box.checked || required || starts !== undefined ? box.checked : undefined}
	}
	if (schema.type === "integer" || schema.type === "number") {
		const input = el("input", {...common, type: "number", step: schema.type === "integer" ? 1 : "any", placeholder: starts ?? ""})
		if (schema.minimum !== undefined) input.min = schema.minimum
		if (schema.maximum !== undefined) input.max = schema.maximum
		return {node: wrap(input), read: () => input.value === "" ? undefined : input.valueAsNumber}
	}
	const text = schema.type === "string"
	const area = el("textarea", {...common, rows: 1, placeholder: starts === undefined || starts === null ? (text ? "" : "JSON or text") : text ? starts : JSON.stringify(starts)})
	return {node: wrap(area, " wide"), read: () => area.value === "" && !(text && required) ? undefined : text ? area.value : parse(area.value)}
}

export class StartForm {
	constructor(form, page) {
		Object.assign(this, {form, page, plugins: [], fields: []})
		this.select = el("select", {name: "plugin", required: true})
		this.select.onchange = () => this.choose(this.select.value)
		this.about = el("p", {className: "about"})
		this.button = el("button", {type: "submit", className: "main"}, "Run")
		this.problem = el("p", {className: "problem", role: "alert"})
		form.onsubmit = event => { event.preventDefault(); this.submit() }
	}

	show(plugins) {
		this.plugins = plugins
		if (!plugins.length) {
			this.form.className = "open"
			return this.form.replaceChildren(el("p", {className: "empty"}, "No plugin is installed. Try speech recognition: ", el("code", {}, "pip install 'cjm-worker-protocols[speech]'")))
		}
		this.select.replaceChildren(...plugins.map(plugin => el("option", {value: plugin.id, disabled: !usable(plugin)}, plugin.name)))
		this.choose((plugins.find(usable) || plugins[0]).id)
	}

	choose(id) {
		const plugin = this.plugins.find(plugin => plugin.id === id)
		this.plugin = plugin
		this.select.value = id
		put(this.problem, "")
		put(this.about, plugin.problem || (plugin.configured ? plugin.description : "This plugin is not configured."))
		const named = (plugin.parameters || []).filter(p => !p.kind.startsWith("var_"))
		const others = plugin.parameters === null || plugin.parameters.some(p => p.kind === "var_keyword")
		this.fields = named.map(p => ({name: p.name, ...field(p)}))
		if (others) this.fields.push({name: null, ...field({name: plugin.parameters === null ? "parameters" : "more parameters", schema: {type: "object"}})})
		this.button.disabled = !usable(plugin)
		this.form.replaceChildren(el("label", {className: "field"}, el("span", {}, "plugin"), this.select), ...this.fields.map(field => field.node),
			this.button, ...(this.about.textContent ? [this.about] : []), this.problem)
	}

	get fileField() { return this.fields.find(field => field.files) }

	// Take files that were dropped anywhere on the page, and run if nothing else is missing.
	drop(files) {
		if (!this.fileField) {
			const taker = this.plugins.find(plugin => usable(plugin) && (plugin.parameters || []).some(p => takesFiles(p.schema)))
			if (!taker) return put(this.problem, "No plugin here takes a file.")
			this.choose(taker.id)
		}
		this.fileField.input.files = files
		if (this.form.checkValidity()) this.submit()
		else this.form.reportValidity()
	}

	focus() { (this.form.querySelector("select, input, textarea") || this.form).focus() }

	async submit() {
		const params = {}, files = []
		for (const field of this.fields) {
			const value = field.read?.()
			if (field.name === null) {
				if (value !== undefined && Object(value) !== value || Array.isArray(value)) return put(this.problem, "Expected a JSON object, as {\"name\": 1}.")
				Object.assign(params, value)
			} else if (field.files) files.push(...field.files().map(file => [field.name, file]))
			else if (value !== undefined) params[field.name] = value
		}
		this.button.disabled = true
		put(this.button, "starting")
		put(this.problem, "")
		try { await this.page.start({plugin_id: this.plugin.id, params}, files) } catch (error) { put(this.problem, error.message) }
		this.button.disabled = false
		put(this.button, "Run")
	}
}
