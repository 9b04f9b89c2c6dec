//! What chat templates expect of Python and `transformers` that minijinja does not have: methods of strings and maps,
//! values printed as Python does, `tojson` with Python's separators, `raise_exception`, `strftime_now`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// Adds them all.
pub fn add(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::String | ValueKind::Undefined => minijinja::escape_formatter(out, state, value),
        _ => out.write_str(&display(value)).map_err(Error::from),
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: Value| display(&value));
    environment.add_function("raise_exception", |what: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, what))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        strftime(&format, now.map_or(0, |since| since.as_secs()))
    });
}

/// The source without `generation` blocks, which mark answers for training: they become blocks that do nothing.
pub fn without_marks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|at| start + at + 2) else {
            break;
        };
        let tag = &rest[start + 2..end - 2];
        let name = tag.trim_matches(['-', '+']).trim();
        let block = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        result.push_str(&rest[..start + 2]);
        match block {
            Some(block) => result.push_str(&tag.replace(name, block)),
            None => result.push_str(tag),
        }
        result.push_str("%}");
        rest = &rest[end..];
    }
    result + rest
}

/// A value as Python's `str` prints it.
fn display(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut text = String::new();
            represent(value, &mut text);
            text
        }
    }
}

/// A value as Python's `repr` prints it.
fn represent(value: &Value, text: &mut String) {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), text),
        ValueKind::Map => {
            text.push('{');
            for (index, (key, item)) in entries(value).into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                represent(&key, text);
                text.push_str(": ");
                represent(&item, text);
            }
            text.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                represent(&item, text);
            }
            text.push(']');
        }
        _ => text.push_str(&value.to_string()),
    }
}

fn entries(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| {
        let item = map.get_item(&key).unwrap_or_default();
        (key, item)
    })
    .collect()
}

/// A string literal of Python: in single quotes unless only these are in it.
fn quote(string: &str, text: &mut String) {
    let mark = if string.contains('\'') && !string.contains('"') {
        '"'
    } else {
        '\''
    };
    text.push(mark);
    for char in string.chars() {
        match char {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ if char == mark => text.extend(['\\', char]),
            _ => text.push(char),
        }
    }
    text.push(mark);
}

/// How `tojson` writes.
struct Json {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// `json.dumps`, whose separators contain spaces.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let json = Json {
        indent,
        item_separator,
        key_separator,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    json.write(&value, 0, &mut text)?;
    Ok(Value::from_safe_string(text))
}

impl Json {
    fn write(&self, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    "an undefined value has no JSON form",
                ));
            }
            ValueKind::Map => {
                let mut entries = entries(value);
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| key.to_string());
                }
                text.push('{');
                for (index, (key, item)) in entries.iter().enumerate() {
                    self.separate(index, depth, text);
                    self.string(&display(key), text);
                    text.push_str(&self.key_separator);
                    self.write(item, depth + 1, text)?;
                }
                self.close(entries.is_empty(), depth, text);
                text.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                text.push('[');
                let mut is_empty = true;
                for (index, item) in value.try_iter()?.enumerate() {
                    is_empty = false;
                    self.separate(index, depth, text);
                    self.write(&item, depth + 1, text)?;
                }
                self.close(is_empty, depth, text);
                text.push(']');
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), text),
            ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::None => text.push_str("null"),
            _ => text.push_str(&value.to_string()),
        }
        Ok(())
    }

    fn separate(&self, index: usize, depth: usize, text: &mut String) {
        if index > 0 {
            text.push_str(&self.item_separator);
        }
        self.line(depth + 1, text);
    }

    fn close(&self, is_empty: bool, depth: usize, text: &mut String) {
        if !is_empty {
            self.line(depth, text);
        }
    }

    fn line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = self.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    }

    fn string(&self, string: &str, text: &mut String) {
        text.push('"');
        for char in string.chars() {
            match char {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                _ if char < ' ' || self.ensure_ascii && !char.is_ascii() => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
                _ => text.push(char),
            }
        }
        text.push('"');
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A point in time, in seconds since 1970, as C's `strftime` writes it in UTC. Directives that it does not know stay as
/// they are.
fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[((days + 4) % 7) as usize];
    let half_hour = (hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            text.push(char);
            continue;
        }
        let directive = chars.next();
        text.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{half_hour:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    text
}

/// Year, month and day of a day since 1970-01-01, by the Gregorian calendar's cycles of 400 years counted from March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A, %B %d, %Y %H:%M:%S %j %%", 951_782_399),
            "Monday, February 28, 2000 23:59:59 %j %"
        );
        assert_eq!(strftime("%F %I %p", 1_709_208_000), "2024-02-29 12 PM");
        assert_eq!(strftime("%y-%m-%d %a", 4_107_542_399), "00-02-28 Sun");
    }

    #[test]
    fn marks_of_answers_are_taken_out() {
        assert_eq!(
            without_marks("{%- generation -%}a{% if x %}{%endgeneration%}{{ '%}' }}"),
            "{%- if true -%}a{% if x %}{%endif%}{{ '%}' }}"
        );
    }
}
