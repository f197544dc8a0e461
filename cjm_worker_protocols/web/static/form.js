// The form that starts a job, made of the parameters of a plugin.

import {el, put} from "./view.js"

const isPath = schema => schema.format === "path"
const takesFiles = schema => isPath(schema) || (schema.type === "array" && schema.items && isPath(schema.items))

// As on the command line: what is JSON is what it says, any other text is text.
function parse(text) {
	try { return JSON.parse(text) } catch { return text }
}

// One parameter: its element, and how to read its value. `undefined` leaves the parameter out.
function field(parameter) {
	const {name, schema, required} = parameter
	const starts = parameter.default
	const label = el("span", {}, name + (required ? " *" : ""))
	const common = {name, required}
	if (takesFiles(schema)) return fileField(parameter, label)
	if (schema.enum) {
		const select = el("select", common, ...(required ? [] : [el("option", {value: ""}, "—")]), ...schema.enum.map((value, n) => el("option", {value: n}, String(value))))
		if (starts !== undefined && schema.enum.includes(starts)) select.value = schema.enum.indexOf(starts)
		return {node: el("label", {className: "field"}, label, select), read: () => select.value === "" ? undefined : schema.enum[select.value]}
	}
	if (schema.type === "boolean") {
		const box = el("input", {type: "checkbox", name, checked: starts === true})
		return {node: el("label", {className: "field"}, label, el("span", {}, box)), read: () => box.checked || required || starts !== undefined ? box.checked : undefined}
	}
	if (schema.type === "integer" || schema.type === "number") {
		const input = el("input", {...common, type: "number", step: schema.type === "integer" ? 1 : "any", placeholder: starts ?? ""})
		if (schema.minimum !== undefined) input.min = schema.minimum
		if (schema.maximum !== undefined) input.max = schema.maximum
		return {node: el("label", {className: "field"}, label, input), read: () => input.value === "" ? undefined : input.valueAsNumber}
	}
	const text = schema.type === "string"
	const area = el("textarea", {...common, rows: 1, placeholder: starts === undefined || starts === null ? (text ? "" : "JSON or text") : text ? starts : JSON.stringify(starts)})
	return {node: el("label", {className: "field wide"}, label, area), read: () => area.value === "" && !(text && required) ? undefined : text ? area.value : parse(area.value)}
}

function fileField({name, schema, required}, label) {
	const input = el("input", {type: "file", name, required, multiple: !isPath(schema)})
	const node = el("label", {className: "field file"}, label, input)
	return {node, input, files: () => [...input.files], read: () => undefined}
}

export class StartForm {
	constructor(form, page) {
		this.form = form
		this.page = page
		this.plugins = []
		this.fields = []
		this.select = el("select", {name: "plugin", required: true})
		this.select.addEventListener("change", () => this.choose(this.select.value))
		this.about = el("p", {className: "about"})
		this.inputs = el("div", {hidden: true})
		this.button = el("button", {className: "main"}, "Run")
		this.problem = el("p", {className: "problem", role: "alert"})
		form.addEventListener("submit", event => { event.preventDefault(); this.submit() })
	}

	show(plugins) {
		this.plugins = plugins
		const usable = plugins.filter(plugin => plugin.configured && !plugin.problem)
		if (!plugins.length) {
			this.form.replaceChildren(el("p", {className: "empty"}, "No plugin is installed. Try speech recognition: ", el("code", {}, "pip install 'cjm-worker-protocols[speech]'")))
			return
		}
		this.select.replaceChildren(...plugins.map(plugin => el("option", {value: plugin.id, disabled: !usable.includes(plugin)}, plugin.name)))
		this.choose((usable[0] || plugins[0]).id)
	}

	choose(id) {
		const plugin = this.plugins.find(plugin => plugin.id === id)
		this.plugin = plugin
		this.select.value = id
		put(this.problem, "")
		put(this.about, plugin.problem || (plugin.configured ? plugin.description : "This plugin is not configured."))
		const named = (plugin.parameters || []).filter(parameter => !parameter.kind.startsWith("var_"))
		const others = plugin.parameters === null || plugin.parameters.some(parameter => parameter.kind === "var_keyword")
		this.fields = named.map(parameter => ({name: parameter.name, ...field(parameter)}))
		if (others) this.fields.push({name: null, ...field({name: plugin.parameters === null ? "parameters" : "more parameters", schema: {type: "object"}})})
		this.button.disabled = Boolean(plugin.problem) || !plugin.configured
		this.form.replaceChildren(el("label", {className: "field"}, el("span", {}, "plugin"), this.select), ...this.fields.map(field => field.node),
			this.button, ...(this.about.textContent ? [this.about] : []), this.problem)
	}

	get fileField() { return this.fields.find(field => field.files) }

	// Take files that were dropped anywhere on the page, and run if nothing else is missing.
	drop(files) {
		if (!this.fileField) {
			const taker = this.plugins.find(plugin => plugin.configured && !plugin.problem && (plugin.parameters || []).some(parameter => takesFiles(parameter.schema)))
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
			const value = field.read()
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
