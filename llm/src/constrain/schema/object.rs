//! Objects: properties in order, and keys that are none of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Reader, Result, choice, counts, unsupported, wrong};
use crate::constrain::expression::{
    Expression, RuleId, characters, literal, other_characters, repeat,
};

impl Reader<'_> {
    /// The objects that a schema allows.
    pub fn object(&mut self, schema: &Map<String, Value>, path: &str) -> Result<Expression> {
        for keyword in [
            "patternProperties",
            "propertyNames",
            "dependentRequired",
            "dependentSchemas",
            "unevaluatedProperties",
        ] {
            if schema
                .get(keyword)
                .is_some_and(|value| *value != Value::Bool(false))
            {
                return unsupported(format!("'{keyword}'"), path);
            }
        }
        let empty = Map::new();
        let properties = match schema.get("properties") {
            None => &empty,
            Some(Value::Object(properties)) => properties,
            Some(_) => return wrong("'properties' must be an object", path),
        };
        let required = required(schema, path)?;
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            Some(additional) => {
                Some(self.schema(additional, &format!("{path}/additionalProperties"))?)
            }
            None if properties.is_empty() => Some(Expression::Rule(self.basics.value)),
            None => None,
        };
        let mut pairs = vec![];
        for (name, property) in properties {
            let value = self.schema(property, &format!("{path}/properties/{name}"))?;
            let key = literal(&Value::from(name.as_str()).to_string());
            let pair = self.rules.add(self.basics.pair(key, value));
            pairs.push((pair, required.contains(name.as_str())));
        }
        for name in required
            .iter()
            .filter(|name| !properties.contains_key(**name))
        {
            let Some(value) = additional.clone() else {
                return wrong(format!("'{name}' is required and not allowed"), path);
            };
            let key = literal(&Value::from(*name).to_string());
            let pair = self.rules.add(self.basics.pair(key, value));
            pairs.push((pair, true));
        }
        let names: BTreeSet<&str> = properties
            .keys()
            .map(String::as_str)
            .chain(required)
            .collect();
        let additional = additional.map(|value| {
            let key = self.other_key(&names);
            let pair = self.basics.pair(key, value);
            Expression::Rule(self.rules.add(pair))
        });
        let (min, max) = counts(schema, "minProperties", "maxProperties", path)?;
        if min == 0 && max.is_none() {
            return Ok(self.properties(&pairs, additional));
        }
        match additional {
            Some(pair) if pairs.is_empty() => Ok(self.basics.list("{", pair, (min, max), "}")),
            None if pairs.iter().filter(|pair| pair.1).count() as u32 >= min
                && max.is_none_or(|max| max as usize >= pairs.len()) =>
            {
                Ok(self.properties(&pairs, None))
            }
            _ => unsupported(
                "'minProperties' or 'maxProperties' beside 'properties'",
                path,
            ),
        }
    }

    /// An object of these pairs in this order, those that are not required or not, and then any number of others.
    fn properties(
        &mut self,
        pairs: &[(RuleId, bool)],
        additional: Option<Expression>,
    ) -> Expression {
        let close = Expression::Sequence(vec![Expression::Rule(self.basics.space), literal("}")]);
        // What may follow when no pair was written yet, and when one was; from the last pair to the first.
        let (mut first, mut next) = (close.clone(), close);
        if let Some(pair) = additional {
            let more = repeat(
                Expression::Sequence(vec![self.basics.comma(), pair.clone()]),
                0,
                None,
            );
            let some = vec![
                Expression::Rule(self.basics.space),
                pair,
                more.clone(),
                next.clone(),
            ];
            first = choice(vec![Expression::Sequence(some), first]);
            next = Expression::Sequence(vec![more, next]);
        }
        for &(pair, is_required) in pairs.iter().rev() {
            let behind = Expression::Rule(self.rules.add(next));
            let pair = Expression::Rule(pair);
            let start = vec![
                Expression::Rule(self.basics.space),
                pair.clone(),
                behind.clone(),
            ];
            let more = vec![self.basics.comma(), pair, behind.clone()];
            (first, next) = if is_required {
                (Expression::Sequence(start), Expression::Sequence(more))
            } else {
                let skipped = Expression::Rule(self.rules.add(first));
                (
                    choice(vec![Expression::Sequence(start), skipped]),
                    choice(vec![Expression::Sequence(more), behind]),
                )
            };
        }
        Expression::Sequence(vec![literal("{"), first])
    }

    /// A key other than the names. It has no escapes, so that it cannot spell a name in another way.
    fn other_key(&mut self, names: &BTreeSet<&str>) -> Expression {
        let plain = vec![('\0', '\u{1f}'), ('"', '"'), ('\\', '\\')];
        let any = characters(other_characters(plain.clone()));
        let any = Expression::Rule(self.rules.add(any));
        let rest = repeat(any, 0, None);
        let rest = Expression::Rule(
            self.rules
                .add(Expression::Sequence(vec![rest, literal("\"")])),
        );
        let names: Vec<Vec<char>> = names.iter().map(|name| name.chars().collect()).collect();
        let names: Vec<&[char]> = names.iter().map(Vec::as_slice).collect();
        let key = self.other_rest(&names, &plain, &rest);
        Expression::Sequence(vec![literal("\""), key])
    }

    /// What may follow in a key of which these rests of names are left, up to the quote.
    fn other_rest(
        &mut self,
        names: &[&[char]],
        escaped: &[(char, char)],
        rest: &Expression,
    ) -> Expression {
        if names.is_empty() {
            return rest.clone();
        }
        let mut by_first: BTreeMap<char, Vec<&[char]>> = Default::default();
        for name in names {
            if let Some((&first, tail)) = name.split_first() {
                by_first.entry(first).or_default().push(tail);
            }
        }
        let mut choices = vec![];
        if names.iter().all(|name| !name.is_empty()) {
            choices.push(literal("\""));
        }
        let mut taken = escaped.to_vec();
        taken.extend(by_first.keys().map(|&first| (first, first)));
        choices.push(Expression::Sequence(vec![
            characters(other_characters(taken)),
            rest.clone(),
        ]));
        for (first, tails) in by_first {
            let is_plain = !escaped
                .iter()
                .any(|&(low, high)| (low..=high).contains(&first));
            if is_plain {
                let tail = self.other_rest(&tails, escaped, rest);
                let tail = Expression::Rule(self.rules.add(tail));
                choices.push(Expression::Sequence(vec![
                    characters([(first, first)]),
                    tail,
                ]));
            }
        }
        Expression::Choice(choices)
    }
}

fn required<'a>(schema: &'a Map<String, Value>, path: &str) -> Result<BTreeSet<&'a str>> {
    match schema.get("required") {
        None => Ok(BTreeSet::new()),
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
            Ok(names.iter().filter_map(Value::as_str).collect())
        }
        Some(_) => wrong("'required' must be a list of names", path),
    }
}
