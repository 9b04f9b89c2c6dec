//! [`Reader`]: the calls in an answer, while it comes.

use super::scan::{Scan, Seen};
use super::{Calling, Form, call_id};
use cupola_llm::begun;

/// What ends a call of [`Form::Tagged`].
const CLOSING: &str = "</tool_call>";

/// Longest name of a function that stands before its arguments.
const MOST_NAME: usize = 256;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    /// Text beside calls.
    Text(String),
    /// A call begins: its place among the calls of the answer.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of the arguments of a call, as JSON.
    Arguments { index: usize, text: String },
}

/// Takes an answer piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    calling: Calling,
    state: State,
    /// Text that is not understood yet.
    held: String,
    /// What was taken off `held` since the last text and is none if a call follows.
    raw: String,
    /// Spaces that are said if text follows.
    space: String,
    has_text: bool,
    calls: usize,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum State {
    /// Text, in which a mark may come.
    Text,
    /// Where a call may begin: after a mark (`true`), or where an answer or the last call ends.
    Before { marked: bool },
    /// Inside the object of a call.
    Call(Call),
    /// Inside arguments whose function is known.
    Arguments(Scan),
}

/// A call that is being read.
#[derive(Clone, Debug, Default)]
struct Call {
    scan: Scan,
    marked: bool,
    name: Option<String>,
    /// The value that is being read, or arguments that came before the name.
    value: String,
    arguments: String,
    /// It was told of.
    is_told: bool,
    /// So was something of its arguments.
    has_arguments: bool,
    /// Its arguments are told character by character.
    argues: bool,
}

impl Reader {
    /// A reader of an answer from its beginning on.
    pub fn new(calling: Calling) -> Reader {
        let state = match calling.is_demanded {
            true => State::Before { marked: true },
            false => State::Text,
        };
        Reader {
            calling,
            state,
            held: String::new(),
            raw: String::new(),
            space: String::new(),
            has_text: false,
            calls: 0,
            parts: vec![],
        }
    }

    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the answer is a call and all of it is there, and no other may follow.
    pub fn is_done(&self) -> bool {
        let between = matches!(self.state, State::Before { marked: false } | State::Text);
        !self.calling.several && self.calls > 0 && between
    }

    /// What is certain with more text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        while !self.is_done() && self.advance() {}
        std::mem::take(&mut self.parts)
    }

    /// What is left when no more text comes.
    pub fn finish(&mut self) -> Vec<Part> {
        let is_text = match &self.state {
            State::Text => true,
            State::Before { marked } => *marked || self.calls == 0,
            State::Call(call) => !call.is_told,
            State::Arguments(_) => false,
        };
        if is_text && !self.is_done() {
            let rest = std::mem::take(&mut self.raw) + &std::mem::take(&mut self.held);
            self.say(&rest);
        }
        if self.calls == 0 && !self.space.is_empty() {
            let space = std::mem::take(&mut self.space);
            self.parts.push(Part::Text(space));
        }
        std::mem::take(&mut self.parts)
    }

    /// Understands some of what is held; `false` when more must come first.
    fn advance(&mut self) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(),
            State::Before { marked } => self.before(marked),
            State::Call(call) => self.call(call),
            State::Arguments(scan) => self.arguments(scan),
        }
    }

    /// Says text; spaces around calls are left out.
    fn say(&mut self, text: &str) {
        self.space.push_str(text);
        let len = self.space.trim_end().len();
        if len == 0 {
            return;
        }
        let rest = self.space.split_off(len);
        let mut text = std::mem::replace(&mut self.space, rest);
        if self.calls > 0 && !self.has_text {
            text = text.trim_start().to_owned();
        }
        self.has_text = true;
        self.parts.push(Part::Text(text));
    }

    /// Takes so many bytes off what is held.
    fn take(&mut self, len: usize) {
        let rest = self.held.split_off(len);
        let taken = std::mem::replace(&mut self.held, rest);
        self.raw.push_str(&taken);
    }

    /// What was taken for a call is none.
    fn no_call(&mut self) -> bool {
        let raw = std::mem::take(&mut self.raw);
        self.say(&raw);
        self.has_text = true;
        self.state = State::Text;
        !self.held.is_empty()
    }

    fn text(&mut self) -> bool {
        let Some(mark) = self.calling.form.mark() else {
            return self.all_is_text();
        };
        if let Some(at) = self.held.find(mark) {
            let rest = self.held.split_off(at);
            let text = std::mem::replace(&mut self.held, rest);
            self.say(&text);
            self.take(mark.len());
            self.state = State::Before { marked: true };
            return true;
        }
        let trimmed = self.held.trim_start();
        if self.calling.form == Form::Bare && !self.has_text {
            if trimmed.is_empty() {
                return false;
            }
            if trimmed.starts_with('{') {
                self.state = State::Before { marked: false };
                return true;
            }
        }
        let kept = begun(&self.held, mark);
        let rest = self.held.split_off(self.held.len() - kept);
        let text = std::mem::replace(&mut self.held, rest);
        self.say(&text);
        false
    }

    fn all_is_text(&mut self) -> bool {
        let text = std::mem::take(&mut self.held);
        self.say(&text);
        false
    }

    fn before(&mut self, marked: bool) -> bool {
        let between: &[char] = match (self.calling.form, marked) {
            (Form::Listed, true) => &['['],
            (Form::Listed, false) => &[','],
            (Form::Bare, _) => &[';', ','],
            (Form::Tagged | Form::Unknown, _) => &[],
        };
        let rest = self
            .held
            .trim_start_matches(|c: char| c.is_whitespace() || between.contains(&c));
        self.take(self.held.len() - rest.len());
        let mark = self.calling.form.mark().filter(|_| !marked);
        if mark.is_some_and(|mark| self.held.starts_with(mark)) {
            self.raw.clear();
            self.state = State::Text;
            return true;
        }
        let may_become = |text: &str| begun(&self.held, text) == self.held.len();
        if mark.is_some_and(may_become) || !marked && may_become(CLOSING) {
            self.state = State::Before { marked };
            return false;
        }
        if self.held.is_empty() {
            self.state = State::Before { marked };
            return false;
        }
        if self.held.starts_with('{') {
            self.state = State::Call(Call {
                marked: marked || self.calls > 0,
                ..Call::default()
            });
            return true;
        }
        let end = match self.calling.form {
            Form::Tagged => CLOSING,
            Form::Listed => "]",
            Form::Bare | Form::Unknown => "\0",
        };
        if !marked && self.held.starts_with(end) {
            self.take(end.len());
            self.raw.clear();
            self.state = State::Text;
            return true;
        }
        match self.calling.form == Form::Listed && marked {
            true => self.named(),
            false => self.no_call(),
        }
    }

    /// A name, after which come arguments.
    fn named(&mut self) -> bool {
        let Some(at) = self.held.find('{') else {
            if self.held.len() > MOST_NAME {
                return self.no_call();
            }
            self.state = State::Before { marked: true };
            return false;
        };
        let name = self.held[..at]
            .split('[')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return self.no_call();
        }
        self.take(at);
        self.tell(name);
        self.state = State::Arguments(Scan::default());
        true
    }

    fn tell(&mut self, name: String) {
        self.parts.push(Part::Call {
            index: self.calls,
            id: call_id(),
            name,
        });
        self.calls += 1;
        self.raw.clear();
        self.space.clear();
        self.has_text = false;
    }

    /// Tells more of the last call's arguments.
    fn argue(&mut self, more: &str) {
        let place = self.calls - 1;
        match self.parts.last_mut() {
            Some(Part::Arguments { index, text }) if *index == place => text.push_str(more),
            _ => self.parts.push(Part::Arguments {
                index: place,
                text: more.to_owned(),
            }),
        }
    }

    fn arguments(&mut self, mut scan: Scan) -> bool {
        let mut len = 0;
        let mut ended = false;
        for c in self.held.chars() {
            len += c.len_utf8();
            if scan.feed(c) == Seen::End {
                ended = true;
                break;
            }
        }
        let rest = self.held.split_off(len);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            self.argue(&text);
        }
        self.state = match ended {
            true => State::Before { marked: false },
            false => State::Arguments(scan),
        };
        ended
    }

    fn call(&mut self, mut call: Call) -> bool {
        let text = std::mem::take(&mut self.held);
        for (at, c) in text.char_indices() {
            self.raw.push(c);
            let seen = call.scan.feed(c);
            match seen {
                Seen::Nothing => continue,
                Seen::Value(c) => {
                    self.value(&mut call, c);
                    continue;
                }
                Seen::ValueEnd | Seen::End => self.value_end(&mut call),
            }
            if seen == Seen::End {
                self.held = text[at + c.len_utf8()..].to_owned();
                return self.end(call);
            }
        }
        self.state = State::Call(call);
        false
    }

    /// One more character of a value of a call. Arguments that are an object go on at once when the name is known.
    fn value(&mut self, call: &mut Call, c: char) {
        let begins = call.is_told && !call.has_arguments && call.value.is_empty();
        if begins && c == '{' && is_arguments(call.scan.key()) {
            (call.has_arguments, call.argues) = (true, true);
        }
        match call.argues {
            true => self.argue(c.encode_utf8(&mut [0; 4])),
            false => call.value.push(c),
        }
    }

    fn value_end(&mut self, call: &mut Call) {
        call.argues = false;
        let value = std::mem::take(&mut call.value);
        let as_text = || serde_json::from_str::<String>(&value).ok();
        match call.scan.key() {
            "name" => {
                let known = |name: &String| call.marked || self.calling.names.contains(name);
                call.name = as_text().filter(known);
                if let Some(name) = call.name.clone().filter(|_| !call.is_told) {
                    self.tell(name);
                    call.is_told = true;
                }
            }
            // Some models write them as a text of JSON.
            key if is_arguments(key) && !value.is_empty() => {
                call.arguments = as_text().unwrap_or(value);
            }
            _ => {}
        }
        if call.is_told && !call.has_arguments && !call.arguments.is_empty() {
            call.has_arguments = true;
            self.argue(&std::mem::take(&mut call.arguments));
        }
    }

    fn end(&mut self, call: Call) -> bool {
        if !call.is_told {
            return self.no_call();
        }
        if !call.has_arguments {
            self.argue("{}");
        }
        self.raw.clear();
        self.state = State::Before { marked: false };
        true
    }
}

fn is_arguments(key: &str) -> bool {
    key == "arguments" || key == "parameters"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calling(form: Form) -> Calling {
        Calling {
            form,
            names: vec!["add".into(), "now".into()],
            is_demanded: false,
            several: true,
        }
    }

    /// The text beside the calls, and each call's name and arguments, of an answer that comes in pieces of so many characters.
    fn read(calling: &Calling, answer: &str, step: usize) -> (String, Vec<(String, String)>) {
        let mut reader = Reader::new(calling.clone());
        let chars: Vec<char> = answer.chars().collect();
        let mut parts: Vec<Part> = chars
            .chunks(step)
            .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
            .collect();
        parts.extend(reader.finish());
        let (mut said, mut calls) = (String::new(), vec![]);
        for part in parts {
            match part {
                Part::Text(text) => said.push_str(&text),
                Part::Call { index, name, .. } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Part::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        assert_eq!(reader.calls(), calls.len());
        (said, calls)
    }

    fn check(calling: &Calling, answer: &str, said: &str, calls: &[(&str, &str)]) {
        let calls: Vec<(String, String)> = calls
            .iter()
            .map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned()))
            .collect();
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(
                read(calling, answer, step),
                (said.to_owned(), calls.clone()),
                "{answer:?} in pieces of {step}"
            );
        }
    }

    #[test]
    fn tagged_calls() {
        let form = calling(Form::Tagged);
        let one = r#"<tool_call>
{"name": "add", "arguments": {"a": 1, "b": "}\"<"}}
</tool_call>"#;
        let arguments = r#"{"a": 1, "b": "}\"<"}"#;
        check(&form, one, "", &[("add", arguments)]);
        check(
            &form,
            &format!("Let me see.\n{one}\n{one}\n"),
            "Let me see.",
            &[("add", arguments); 2],
        );
        check(&form, &format!("{one} So."), "So.", &[("add", arguments)]);
        check(&form, "a < b <tool", "a < b <tool", &[]);
        check(
            &form,
            "<tool_call>no</tool_call> yes",
            "<tool_call>no</tool_call> yes",
            &[],
        );
        check(
            &form,
            r#"<tool_call>{"nom": 1}</tool_call>"#,
            r#"<tool_call>{"nom": 1}</tool_call>"#,
            &[],
        );
        check(
            &form,
            r#"<tool_call>{"name": "add", "arguments": {"a""#,
            "",
            &[("add", r#"{"a""#)],
        );
        check(
            &form,
            r#"<tool_call>{"arguments": {"a": 2}, "name": "add"}</tool_call>"#,
            "",
            &[("add", r#"{"a": 2}"#)],
        );
        check(
            &form,
            r#"<tool_call>{"name": "add", "arguments": "{\"a\": 2}"}</tool_call>"#,
            "",
            &[("add", r#"{"a": 2}"#)],
        );
        check(
            &form,
            r#"<tool_call>{"name": "now"}</tool_call>"#,
            "",
            &[("now", "{}")],
        );
        check(&form, " text \n", " text \n", &[]);
    }

    #[test]
    fn listed_calls() {
        let form = calling(Form::Listed);
        let two = r#"[TOOL_CALLS] [{"name": "add", "arguments": {"a": [1, 2]}, "id": "x"}, {"name": "now", "arguments": {}}]"#;
        check(
            &form,
            two,
            "",
            &[("add", r#"{"a": [1, 2]}"#), ("now", "{}")],
        );
        check(
            &form,
            r#"Well. [TOOL_CALLS]add[ARGS]{"a": {"b": 1}}"#,
            "Well.",
            &[("add", r#"{"a": {"b": 1}}"#)],
        );
        check(
            &form,
            r#"[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]now{}"#,
            "",
            &[("add", r#"{"a": 1}"#), ("now", "{}")],
        );
        check(&form, "[TOOL_CALLS]", "[TOOL_CALLS]", &[]);
        check(&form, "a list [1]", "a list [1]", &[]);
    }

    #[test]
    fn bare_calls() {
        let form = calling(Form::Bare);
        check(
            &form,
            r#"{"name": "add", "parameters": {"a": 1}}"#,
            "",
            &[("add", r#"{"a": 1}"#)],
        );
        let two = r#"<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"name": "now", "parameters": {}}"#;
        check(&form, two, "", &[("add", r#"{"a": 1}"#), ("now", "{}")]);
        // An object that the user asked for is none.
        for text in [
            r#"{"name": "Anna", "parameters": {}} ok"#,
            r#"{"a": {"name": "add"}}"#,
            r#" {"name": "#,
            "{}",
            "Hello {",
        ] {
            check(&form, text, text, &[]);
        }
    }

    #[test]
    fn a_demanded_call_begins_at_once_and_the_only_one_ends_the_answer() {
        let form = Calling {
            is_demanded: true,
            several: false,
            ..calling(Form::Tagged)
        };
        let call = r#"{"name": "add", "arguments": {}}"#;
        check(&form, call, "", &[("add", "{}")]);
        check(
            &form,
            &format!("{call}</tool_call><tool_call>{call}"),
            "",
            &[("add", "{}")],
        );
        let mut reader = Reader::new(form);
        reader.push(call);
        assert!(reader.is_done());
        let listed = Calling {
            is_demanded: true,
            ..calling(Form::Listed)
        };
        check(&listed, &format!("[{call}]"), "", &[("add", "{}")]);
    }
}
