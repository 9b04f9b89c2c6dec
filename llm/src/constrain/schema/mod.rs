//! JSON schemas as rules.

mod object;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Read;
use super::error::ConstraintError;
use super::expression::{Expression, RuleId, Rules, literal, repeat};
use super::json::{Basics, quoted};
use super::{number, pattern};

type Result<T> = std::result::Result<T, ConstraintError>;

/// Schemas within schemas, and references to references.
const MAX_NESTING: usize = 120;

/// Keywords that describe and do not restrict, and those that hold what references name.
const DESCRIBING: &[&str] = &[
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$schema",
    "$id",
    "id",
    "$comment",
    "$anchor",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$defs",
    "definitions",
    "strict",
    "name",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
    "propertyOrdering",
];

/// Reads a schema.
pub fn read(schema: &Value) -> Result<Read> {
    let mut rules = Rules::default();
    let basics = Basics::add(&mut rules);
    let mut reader = Reader {
        document: schema,
        rules,
        basics,
        references: HashMap::new(),
        nesting: 0,
    };
    let expression = reader.schema(schema, "#")?;
    let root = reader.rules.add(expression);
    Ok(Read {
        rules: reader.rules,
        root,
        names: vec![],
    })
}

struct Reader<'a> {
    document: &'a Value,
    rules: Rules,
    basics: Basics,
    /// Rules of schemas that references name.
    references: HashMap<String, RuleId>,
    nesting: usize,
}

fn wrong<T>(what: impl Into<String>, path: &str) -> Result<T> {
    Err(ConstraintError::Schema {
        what: what.into(),
        path: path.to_owned(),
    })
}

fn unsupported<T>(what: impl Into<String>, path: &str) -> Result<T> {
    Err(ConstraintError::Unsupported {
        what: what.into(),
        path: path.to_owned(),
    })
}

/// Any of the choices.
fn choice(mut choices: Vec<Expression>) -> Expression {
    match choices.pop() {
        Some(only) if choices.is_empty() => only,
        last => {
            choices.extend(last);
            Expression::Choice(choices)
        }
    }
}

impl Reader<'_> {
    /// The texts that a schema allows.
    fn schema(&mut self, schema: &Value, path: &str) -> Result<Expression> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(ConstraintError::TooLarge("120 schemas within schemas"));
        }
        let expression = match schema {
            Value::Bool(true) => Ok(Expression::Rule(self.basics.value)),
            Value::Bool(false) => wrong("it allows nothing", path),
            Value::Object(keywords) => self.keywords(keywords, path),
            _ => wrong("a schema must be an object or a boolean", path),
        };
        self.nesting -= 1;
        expression
    }

    fn keywords(&mut self, schema: &Map<String, Value>, path: &str) -> Result<Expression> {
        if let Some(reference) = schema.get("$ref") {
            let Some(reference) = reference.as_str() else {
                return wrong("a reference must be a string", path);
            };
            if restricts(schema, &["$ref"]) {
                let target = self.target(reference, path)?.clone();
                let rest = without(schema, "$ref");
                let merged = self.merge(rest, &target, path)?;
                return self.schema(&merged, path);
            }
            return self.reference(reference, path);
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get(keyword) {
                return self.any_of(schema, keyword, branches, path);
            }
        }
        if let Some(parts) = schema.get("allOf") {
            let Some(parts) = parts.as_array() else {
                return wrong("'allOf' must be a list", path);
            };
            let mut merged = Value::Object(without(schema, "allOf"));
            for part in parts {
                let Value::Object(base) = merged else {
                    return wrong("it allows nothing", path);
                };
                merged = self.merge(base, part, path)?;
            }
            return self.schema(&merged, path);
        }
        if let Some(only) = schema.get("const") {
            return Ok(literal(&only.to_string()));
        }
        if let Some(values) = schema.get("enum") {
            return match values.as_array() {
                Some(values) if !values.is_empty() => {
                    let texts = values.iter().map(|value| literal(&value.to_string()));
                    Ok(choice(texts.collect()))
                }
                _ => wrong("'enum' must be a list of values", path),
            };
        }
        let choices: Result<Vec<Expression>> = types(schema, path)?
            .into_iter()
            .map(|kind| self.of_type(kind, schema, path))
            .collect();
        Ok(choice(choices?))
    }

    fn any_of(
        &mut self,
        schema: &Map<String, Value>,
        keyword: &str,
        branches: &Value,
        path: &str,
    ) -> Result<Expression> {
        let Some(branches) = branches.as_array().filter(|list| !list.is_empty()) else {
            return wrong(format!("'{keyword}' must be a list of schemas"), path);
        };
        let has_more = restricts(schema, &[keyword]);
        let mut choices = vec![];
        for (at, branch) in branches.iter().enumerate() {
            let path = format!("{path}/{keyword}/{at}");
            choices.push(if has_more {
                let merged = self.merge(without(schema, keyword), branch, &path)?;
                self.schema(&merged, &path)?
            } else {
                self.schema(branch, &path)?
            });
        }
        Ok(choice(choices))
    }

    /// A schema that allows what both allow.
    fn merge(&mut self, mut base: Map<String, Value>, other: &Value, path: &str) -> Result<Value> {
        let other = match other {
            Value::Bool(true) => return Ok(Value::Object(base)),
            Value::Object(other) => other,
            _ => return wrong("a schema must be an object", path),
        };
        for (keyword, value) in other {
            let Some(own) = base.get_mut(keyword) else {
                base.insert(keyword.clone(), value.clone());
                continue;
            };
            match (keyword.as_str(), own, value) {
                ("properties", Value::Object(own), Value::Object(more)) => {
                    for (name, schema) in more {
                        if own.get(name).is_some_and(|known| known != schema) {
                            return unsupported(
                                format!("the property '{name}' in two parts"),
                                path,
                            );
                        }
                        own.insert(name.clone(), schema.clone());
                    }
                }
                ("required", Value::Array(own), Value::Array(more)) => own.extend(more.clone()),
                (_, own, value) if own == value => {}
                (keyword, ..) if DESCRIBING.contains(&keyword) => {}
                _ => return unsupported(format!("'{keyword}' in two parts"), path),
            }
        }
        Ok(Value::Object(base))
    }

    fn target(&self, reference: &str, path: &str) -> Result<&Value> {
        let Some(pointer) = reference.strip_prefix('#') else {
            return unsupported("a reference to another document", path);
        };
        match self.document.pointer(pointer) {
            Some(target) => Ok(target),
            None => wrong(format!("'{reference}' does not exist"), path),
        }
    }

    fn reference(&mut self, reference: &str, path: &str) -> Result<Expression> {
        if let Some(&rule) = self.references.get(reference) {
            return Ok(Expression::Rule(rule));
        }
        let target = self.target(reference, path)?.clone();
        let rule = self.rules.reserve();
        self.references.insert(reference.to_owned(), rule);
        let expression = self.schema(&target, reference)?;
        self.rules.set(rule, expression);
        Ok(Expression::Rule(rule))
    }

    fn of_type(
        &mut self,
        kind: &str,
        schema: &Map<String, Value>,
        path: &str,
    ) -> Result<Expression> {
        match kind {
            "null" => Ok(literal("null")),
            "boolean" => Ok(choice(vec![literal("true"), literal("false")])),
            "string" => self.string(schema, path),
            "integer" | "number" => self.number(kind == "integer", schema, path),
            "array" => self.array(schema, path),
            "object" => self.object(schema, path),
            _ => wrong(format!("there is no type '{kind}'"), path),
        }
    }

    fn string(&mut self, schema: &Map<String, Value>, path: &str) -> Result<Expression> {
        let (min, max) = counts(schema, "minLength", "maxLength", path)?;
        let has_len = min > 0 || max.is_some();
        let format = schema
            .get("format")
            .and_then(Value::as_str)
            .and_then(format_pattern);
        let own = match schema.get("pattern") {
            None => None,
            Some(Value::String(own)) => Some(own.as_str()),
            Some(_) => return wrong("'pattern' must be a string", path),
        };
        match (own, format) {
            (Some(_), Some(_)) => unsupported("'pattern' with 'format'", path),
            (Some(_), None) | (None, Some(_)) if has_len => {
                unsupported("a length with 'pattern' or 'format'", path)
            }
            (Some(pattern), None) | (None, Some(pattern)) => {
                let contents = pattern::in_string(pattern)?;
                Ok(Expression::Rule(self.rules.add(quoted(contents))))
            }
            (None, None) if has_len => {
                let contents = repeat(Expression::Rule(self.basics.character), min, max);
                Ok(quoted(contents))
            }
            (None, None) => Ok(Expression::Rule(self.basics.string)),
        }
    }

    fn number(
        &mut self,
        whole: bool,
        schema: &Map<String, Value>,
        path: &str,
    ) -> Result<Expression> {
        let mut low = f64::NEG_INFINITY;
        let mut high = f64::INFINITY;
        for (keyword, value) in schema {
            let step = match keyword.as_str() {
                "minimum" | "maximum" => 0.0,
                "exclusiveMinimum" | "exclusiveMaximum" => 1.0,
                "multipleOf" if whole && value.as_f64() == Some(1.0) => continue,
                "multipleOf" => return unsupported("'multipleOf'", path),
                _ => continue,
            };
            let Some(bound) = value.as_f64() else {
                return wrong(format!("'{keyword}' must be a number"), path);
            };
            // Next to an excluded bound whole numbers are what is left; between them lie fractions that are left out.
            if keyword.ends_with("inimum") {
                low = low.max(if step > 0.0 {
                    bound.floor() + step
                } else {
                    bound
                });
            } else {
                high = high.min(if step > 0.0 {
                    bound.ceil() - step
                } else {
                    bound
                });
            }
        }
        if low == f64::NEG_INFINITY && high == f64::INFINITY {
            let basics = &self.basics;
            return Ok(Expression::Rule(if whole {
                basics.integer
            } else {
                basics.number
            }));
        }
        let numbers = if whole {
            let limit = number::LIMIT as f64;
            let (low, high) = (
                low.ceil().clamp(-limit, limit + 1.0),
                high.floor().clamp(-limit - 1.0, limit),
            );
            number::integers(low as i64, high as i64)
        } else {
            number::numbers(low, high)
        };
        match numbers {
            Some(numbers) => Ok(Expression::Rule(self.rules.add(numbers))),
            None => unsupported("a range without whole numbers", path),
        }
    }

    fn array(&mut self, schema: &Map<String, Value>, path: &str) -> Result<Expression> {
        for keyword in ["uniqueItems", "contains", "unevaluatedItems"] {
            if schema
                .get(keyword)
                .is_some_and(|value| *value != Value::Bool(false))
            {
                return unsupported(format!("'{keyword}'"), path);
            }
        }
        let (min, max) = counts(schema, "minItems", "maxItems", path)?;
        let (first, rest) = match (schema.get("prefixItems"), schema.get("items")) {
            (None, Some(Value::Array(first))) => (first.as_slice(), schema.get("additionalItems")),
            (Some(Value::Array(first)), rest) => (first.as_slice(), rest),
            (Some(_), _) => return wrong("'prefixItems' must be a list", path),
            (None, rest) => (&[][..], rest),
        };
        let rest = match rest {
            Some(Value::Bool(false)) => None,
            Some(schema) => Some(self.schema(schema, &format!("{path}/items"))?),
            None if first.is_empty() => Some(Expression::Rule(self.basics.value)),
            // Of items that a schema says nothing of, there are none.
            None => None,
        };
        let rest = rest.map(|rest| Expression::Rule(self.rules.add(rest)));
        if first.is_empty() {
            return match rest {
                Some(item) => Ok(self.basics.list("[", item, (min, max), "]")),
                None if min == 0 => Ok(literal("[]")),
                None => wrong("it allows no items and asks for some", path),
            };
        }
        let mut items = vec![];
        for (at, schema) in first.iter().enumerate() {
            items.push(self.schema(schema, &format!("{path}/prefixItems/{at}"))?);
        }
        self.tuple(items, rest, min, max, path)
    }

    /// An array of given items, all of which are there, and then any number of others.
    fn tuple(
        &mut self,
        items: Vec<Expression>,
        rest: Option<Expression>,
        min: u32,
        max: Option<u32>,
        path: &str,
    ) -> Result<Expression> {
        let len = items.len() as u32;
        if max.is_some_and(|max| max < len) || rest.is_none() && min > len {
            return unsupported("a list of items whose length is out of bounds", path);
        }
        let space = || Expression::Rule(self.basics.space);
        let mut parts = vec![literal("["), space()];
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                parts.push(self.basics.comma());
            }
            parts.push(item);
        }
        if let Some(rest) = rest {
            let more = Expression::Sequence(vec![self.basics.comma(), rest]);
            parts.push(repeat(
                more,
                min.saturating_sub(len),
                max.map(|max| max - len),
            ));
        }
        parts.extend([space(), literal("]")]);
        Ok(Expression::Sequence(parts))
    }
}

/// The schema without a keyword.
fn without(schema: &Map<String, Value>, keyword: &str) -> Map<String, Value> {
    let mut rest = schema.clone();
    rest.shift_remove(keyword);
    rest
}

/// Whether keywords other than these restrict.
fn restricts(schema: &Map<String, Value>, but: &[&str]) -> bool {
    schema
        .keys()
        .any(|keyword| !but.contains(&keyword.as_str()) && !DESCRIBING.contains(&keyword.as_str()))
}

/// Keywords that say something of values of one type.
const OF_TYPES: &[(&str, &[&str])] = &[
    (
        "object",
        &[
            "properties",
            "required",
            "additionalProperties",
            "minProperties",
            "maxProperties",
            "patternProperties",
            "propertyNames",
            "dependentRequired",
            "dependentSchemas",
            "unevaluatedProperties",
        ],
    ),
    (
        "array",
        &[
            "items",
            "prefixItems",
            "additionalItems",
            "minItems",
            "maxItems",
            "uniqueItems",
            "contains",
            "unevaluatedItems",
        ],
    ),
    ("string", &["minLength", "maxLength", "pattern", "format"]),
    (
        "number",
        &[
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
        ],
    ),
];

/// The types that a schema allows: those it names, or those that its keywords are of, or all.
fn types<'a>(schema: &'a Map<String, Value>, path: &str) -> Result<Vec<&'a str>> {
    let mut of_keywords = vec![];
    for keyword in schema.keys().map(String::as_str) {
        let of = OF_TYPES
            .iter()
            .find(|(_, keywords)| keywords.contains(&keyword));
        match of {
            Some((kind, _)) if !of_keywords.contains(kind) => of_keywords.push(*kind),
            Some(_) => {}
            None if keyword == "type" || keyword == "nullable" || DESCRIBING.contains(&keyword) => {
            }
            None => return unsupported(format!("'{keyword}'"), path),
        }
    }
    let mut types: Vec<&str> = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) if !kinds.is_empty() && kinds.iter().all(Value::is_string) => {
            kinds.iter().filter_map(Value::as_str).collect()
        }
        Some(_) => return wrong("'type' must be a type or a list of types", path),
        None if !of_keywords.is_empty() => of_keywords,
        None => vec!["object", "array", "string", "number", "boolean", "null"],
    };
    if schema.get("nullable") == Some(&Value::Bool(true)) && !types.contains(&"null") {
        types.push("null");
    }
    Ok(types)
}

/// A least and a largest count.
fn counts(
    schema: &Map<String, Value>,
    min: &str,
    max: &str,
    path: &str,
) -> Result<(u32, Option<u32>)> {
    let count = |keyword: &str| match schema.get(keyword) {
        None => Ok(None),
        Some(value) => {
            let whole = value.as_u64().or(value
                .as_f64()
                .filter(|v| v.fract() == 0.0 && *v >= 0.0)
                .map(|v| v as u64));
            match whole.map(u32::try_from) {
                Some(Ok(count)) => Ok(Some(count)),
                _ => wrong(format!("'{keyword}' must be a count"), path),
            }
        }
    };
    let (low, high) = (count(min)?.unwrap_or(0), count(max)?);
    if high.is_some_and(|high| high < low) {
        return wrong(format!("'{max}' is less than '{min}'"), path);
    }
    Ok((low, high))
}

/// Patterns of formats; other formats only describe.
fn format_pattern(format: &str) -> Option<&'static str> {
    Some(match format {
        "date" => DATE,
        "time" => TIME,
        "date-time" => DATE_TIME,
        "uuid" => "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
        "ipv4" => {
            r"^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])$"
        }
        "email" => {
            r"^[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,32}){0,3}@([A-Za-z0-9]{1,32}(-[A-Za-z0-9]{1,30})?\.){1,3}[A-Za-z]{2,16}$"
        }
        _ => return None,
    })
}

macro_rules! date {
    () => {
        "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])))"
    };
}
macro_rules! time {
    () => {
        r"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))"
    };
}
const DATE: &str = concat!("^", date!(), "$");
const TIME: &str = concat!("^", time!(), "$");
const DATE_TIME: &str = concat!("^", date!(), "T", time!(), "$");
