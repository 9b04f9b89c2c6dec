//! Functions that a model may call: what a request says of them, and the calls in its answer.
//!
//! Models write calls in one of a few forms; which, their chat template tells ([`Form`]). [`Reader`] finds calls in an
//! answer while it comes. Where a call is demanded, the answer begins inside one and is held to a schema.

mod reader;
mod scan;

pub(crate) use reader::{Part, Reader};

use crate::error::{ApiError, Outcome};
use cupola_llm::constrain::Grammar;
use cupola_text::ChatTemplate;
use serde_json::{Map, Value, json};

/// Most functions of a request.
const MOST_TOOLS: usize = 128;

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>` (Qwen, Hermes).
    Tagged,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}]`, or `[TOOL_CALLS]name[ARGS]{..}` (Mistral).
    Listed,
    /// `{"name": .., "parameters": ..}` as the whole answer, perhaps after `<|python_tag|>` (Llama 3).
    Bare,
    /// The template says nothing of calls; only where one is demanded, the answer is `{"name": .., "arguments": ..}`.
    Unknown,
}

impl Form {
    /// The form that a template asks for.
    pub fn of(template: &ChatTemplate) -> Form {
        let source = template.tool_source();
        let says = |what: &str| source.contains(what);
        if says("<tool_call>") {
            Form::Tagged
        } else if says("[TOOL_CALLS]") {
            Form::Listed
        } else if says("<|python_tag|>") || says("tools") && says("\"parameters\"") {
            Form::Bare
        } else {
            Form::Unknown
        }
    }

    /// What stands before a call.
    pub fn mark(self) -> Option<&'static str> {
        match self {
            Form::Tagged => Some("<tool_call>"),
            Form::Listed => Some("[TOOL_CALLS]"),
            Form::Bare => Some("<|python_tag|>"),
            Form::Unknown => None,
        }
    }

    /// The beginning of an answer that is a call.
    fn opening(self) -> &'static str {
        match self {
            Form::Tagged => "<tool_call>\n",
            Form::Listed => "[TOOL_CALLS]",
            Form::Bare | Form::Unknown => "",
        }
    }

    /// Name of the arguments.
    fn arguments(self) -> &'static str {
        match self {
            Form::Bare => "parameters",
            Form::Tagged | Form::Listed | Form::Unknown => "arguments",
        }
    }
}

/// Whether a function is to be called.
#[derive(Clone, Debug, PartialEq)]
enum Choice {
    Never,
    Auto,
    /// One of those at these places.
    Demanded(Vec<usize>),
}

/// The functions of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    list: Vec<Value>,
    choice: Choice,
    several: bool,
}

/// What reads the calls of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Calling {
    pub form: Form,
    pub names: Vec<String>,
    /// The answer begins inside a call.
    pub is_demanded: bool,
    /// There may be more calls than one.
    pub several: bool,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls` of a request.
    pub fn read(
        list: Option<Vec<Value>>,
        choice: Option<Value>,
        several: Option<bool>,
    ) -> Outcome<Tools> {
        let list = list.unwrap_or_default();
        if list.len() > MOST_TOOLS {
            return Err(ApiError::bad(format!(
                "tools: at most {MOST_TOOLS} functions can be given"
            )));
        }
        for (i, tool) in list.iter().enumerate() {
            let is_function =
                tool["type"] == "function" && name(tool).is_some_and(|n| !n.is_empty());
            if !is_function {
                return Err(ApiError::bad(format!(
                    "tools: entry {i} is not {{\"type\": \"function\", \"function\": {{\"name\": ..}}}}"
                )));
            }
        }
        let choice = read_choice(&list, choice.as_ref())?;
        Ok(Tools {
            list,
            choice,
            several: several.unwrap_or(true),
        })
    }

    /// What the template is told of.
    pub fn shown(&self) -> Option<Value> {
        let hidden = self.list.is_empty() || self.choice == Choice::Never;
        (!hidden).then(|| Value::from(self.list.clone()))
    }

    /// How calls are read out of the answers of a model with this template, if at all.
    pub fn calling(&self, template: &ChatTemplate) -> Option<Calling> {
        self.shown()?;
        let form = Form::of(template);
        let is_demanded = matches!(self.choice, Choice::Demanded(_));
        if form == Form::Unknown && !is_demanded {
            return None;
        }
        let names = self.list.iter().filter_map(name).map(str::to_owned);
        Some(Calling {
            form,
            names: names.collect(),
            is_demanded,
            several: self.several,
        })
    }

    /// Where a call is demanded: how the answer begins, and what the rest of it is held to.
    pub fn demand(&self, form: Form) -> Outcome<Option<(&'static str, Grammar)>> {
        let Choice::Demanded(places) = &self.choice else {
            return Ok(None);
        };
        let path = match form {
            Form::Listed => "#/items",
            Form::Tagged | Form::Bare | Form::Unknown => "#",
        };
        let only = places.len() == 1;
        let calls = places.iter().enumerate().map(|(at, place)| {
            let path = match only {
                true => path.to_owned(),
                false => format!("{path}/anyOf/{at}"),
            };
            call_schema(&self.list[*place], form, &path)
        });
        let mut calls: Vec<Value> = calls.collect();
        let call = match only {
            true => calls.swap_remove(0),
            false => json!({ "anyOf": calls }),
        };
        let schema = match form {
            Form::Listed => json!({ "type": "array", "items": call, "minItems": 1, "maxItems": 1 }),
            Form::Tagged | Form::Bare | Form::Unknown => call,
        };
        let grammar = Grammar::json_schema(&schema);
        let grammar = grammar.map_err(|e| ApiError::bad(format!("tools: {e}")))?;
        Ok(Some((form.opening(), grammar)))
    }
}

/// The name of a function.
fn name(tool: &Value) -> Option<&str> {
    tool["function"]["name"].as_str()
}

fn read_choice(list: &[Value], choice: Option<&Value>) -> Outcome<Choice> {
    let wrong = || {
        ApiError::bad(
            "tool_choice is none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ..}}",
        )
    };
    let Some(choice) = choice.filter(|c| !c.is_null()) else {
        return Ok(Choice::Auto);
    };
    let demanded = match choice.as_str() {
        Some("none") => return Ok(Choice::Never),
        Some("auto") => return Ok(Choice::Auto),
        Some("required") => (0..list.len()).collect(),
        Some(_) => return Err(wrong()),
        None => {
            let asked = name(choice).ok_or_else(wrong)?;
            let place = list.iter().position(|tool| name(tool) == Some(asked));
            place.into_iter().collect::<Vec<usize>>()
        }
    };
    match demanded.is_empty() {
        true => Err(ApiError::bad(
            "tool_choice demands a function that tools does not have",
        )),
        false => Ok(Choice::Demanded(demanded)),
    }
}

/// What a call of a function looks like; `path` is where the schema will be.
fn call_schema(tool: &Value, form: Form, path: &str) -> Value {
    let key = form.arguments();
    let mut arguments = match &tool["function"]["parameters"] {
        Value::Null => json!({ "type": "object" }),
        given => given.clone(),
    };
    move_references(&mut arguments, &format!("{path}/properties/{key}"));
    let mut properties = Map::new();
    properties.insert("name".into(), json!({ "const": tool["function"]["name"] }));
    properties.insert(key.into(), arguments);
    json!({
        "type": "object",
        "properties": properties,
        "required": ["name", key],
        "additionalProperties": false,
    })
}

/// Makes references to the schema's own parts hold when it is a part of another, at `path`.
fn move_references(schema: &mut Value, path: &str) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(target) if key == "$ref" && target.starts_with('#') => {
                        *target = format!("{path}{}", &target[1..]);
                    }
                    value => move_references(value, path),
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_references(item, path)),
        _ => {}
    }
}

/// Name of a call: nine letters and digits, as the strictest of templates wants it.
pub(crate) fn call_id() -> String {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = crate::request::random_seed();
    let letters = (0..9).map(|_| {
        let letter = LETTERS[(random % 36) as usize];
        random /= 36;
        char::from(letter)
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: Value) -> Value {
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
    }

    fn form(source: &str) -> Form {
        Form::of(&ChatTemplate::new(source, Map::new()).expect("a template"))
    }

    #[test]
    fn templates_tell_the_form() {
        assert_eq!(form("{{ '<tool_call>' }}"), Form::Tagged);
        assert_eq!(form("{{ '[TOOL_CALLS]' }}"), Form::Listed);
        assert_eq!(
            form("{% if tools %}{{ '{\"name\": .., \"parameters\": ..}' }}{% endif %}"),
            Form::Bare
        );
        assert_eq!(form("{{ messages }}"), Form::Unknown);
    }

    #[test]
    fn a_demanded_call_is_all_that_is_allowed() {
        let point = json!({
            "type": "object",
            "properties": { "at": { "$ref": "#/$defs/place" } },
            "required": ["at"],
            "$defs": { "place": { "enum": ["here", "there"] } },
        });
        let list = vec![tool("go", point), tool("stop", Value::Null)];
        let tools =
            |choice: Value| Tools::read(Some(list.clone()), Some(choice), None).expect("tools");
        let demand = |choice: Value, form| {
            tools(choice)
                .demand(form)
                .expect("a schema")
                .expect("a demand")
                .1
        };
        let any = demand(json!("required"), Form::Tagged);
        assert!(any.allows(br#"{"name": "go", "arguments": {"at": "here"}}"#));
        assert!(any.allows(br#"{"name": "stop", "arguments": {}}"#));
        assert!(!any.allows(br#"{"name": "go", "arguments": {"at": "elsewhere"}}"#));
        assert!(!any.allows(br#"{"name": "turn", "arguments": {}}"#));
        let one = demand(
            json!({ "type": "function", "function": { "name": "go" } }),
            Form::Listed,
        );
        assert!(one.allows(br#"[{"name": "go", "arguments": {"at": "there"}}]"#));
        assert!(!one.allows(br#"[{"name": "stop", "arguments": {}}]"#));
        let bare = demand(json!("required"), Form::Bare);
        assert!(bare.allows(br#"{"name": "stop", "parameters": {"a": 1}}"#));
        assert!(
            tools(json!("auto"))
                .demand(Form::Bare)
                .expect("nothing")
                .is_none()
        );
        assert!(tools(json!("none")).shown().is_none());
    }

    #[test]
    fn what_is_no_tool_is_refused() {
        let read =
            |list: Value, choice: Value| Tools::read(list.as_array().cloned(), Some(choice), None);
        assert!(read(json!([{ "type": "function" }]), Value::Null).is_err());
        assert!(read(json!([3]), Value::Null).is_err());
        assert!(read(json!([]), json!("required")).is_err());
        assert!(read(json!([]), json!("maybe")).is_err());
        let named = json!({ "type": "function", "function": { "name": "x" } });
        assert!(read(json!([tool("y", Value::Null)]), named).is_err());
        assert!(read(json!([tool("y", Value::Null)]), json!("required")).is_ok());
    }

    #[test]
    fn names_of_calls_are_nine_letters() {
        let id = call_id();
        assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(id, call_id());
    }
}
