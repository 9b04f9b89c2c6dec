//! Texts that a grammar holds parse, all of them: SmolLM2 (in the folder that `CUPOLA_TEST_MODELS` names) draws at a high
//! temperature, other readers than the ones that made the grammars judge. `CUPOLA_CONSTRAINED=1000` makes so many texts and
//! prints figures.

use cupola::language::TextModel;
use cupola::llm::constrain::{Constrainer, Grammar, TokenTrie};
use cupola::llm::{Constraint, EngineOptions, Event, FinishReason, Request, Sampling};
use cupola::{Host, Options};
use regex::Regex;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A grammar, and what judges a text of it.
struct Kind {
    name: &'static str,
    grammar: Grammar,
    judge: Box<dyn Fn(&str) -> bool>,
}

fn kind(name: &'static str, grammar: Grammar, judge: impl Fn(&str) -> bool + 'static) -> Kind {
    let judge = Box::new(judge);
    Kind {
        name,
        grammar,
        judge,
    }
}

fn of_pattern(name: &'static str, pattern: &str, grammar: Grammar) -> Kind {
    let whole = Regex::new(&format!("^(?:{pattern})$")).expect("a pattern");
    kind(name, grammar, move |text| whole.is_match(text))
}

/// Whether an object has exactly these members, each as its judge says.
fn has(json: &Json, members: &[(&str, &dyn Fn(&Json) -> bool)]) -> bool {
    let Some(object) = json.as_object() else {
        return false;
    };
    object.len() == members.len()
        && members
            .iter()
            .all(|(name, judge)| object.get(*name).is_some_and(judge))
}

fn kinds() -> Vec<Kind> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 16 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "mood": { "enum": ["good", "bad", null] }
        },
        "required": ["name", "age", "mood"]
    });
    let list = json!({
        "type": "array", "minItems": 1, "maxItems": 3,
        "items": {
            "type": "object",
            "properties": {
                "ok": { "type": "boolean" },
                "at": { "type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$" }
            },
            "required": ["ok", "at"]
        }
    });
    let word = |x: &Json| {
        let len = x.as_str().map(|s| s.chars().count());
        len.is_some_and(|len| (1..=16).contains(&len))
    };
    let age = |x: &Json| x.as_u64().is_some_and(|x| x <= 120);
    let mood = |x: &Json| [json!("good"), json!("bad"), Json::Null].contains(x);
    let time = Regex::new("^[0-9]{2}:[0-9]{2}$").expect("a pattern");
    let entry = move |x: &Json| {
        let at = |x: &Json| x.as_str().is_some_and(|s| time.is_match(s));
        has(x, &[("ok", &Json::is_boolean), ("at", &at)])
    };
    let schema = |schema| Grammar::json_schema(schema).expect("a grammar");
    let sum = r#"
        root ::= term (" " [+-] " " term){0,3} " = " number
        term ::= number | "(" number " * " number ")"
        number ::= "0" | [1-9] [0-9]{0,3}
    "#;
    let number = "(0|[1-9][0-9]{0,3})";
    let term = format!(r"({number}|\({number} \* {number}\))");
    let date = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9] \((Mon|Tue|Wed|Thu|Fri|Sat|Sun)\)";
    let name =
        r"[A-Z][a-zäöüéß]{1,8}( [A-Z][a-z]{1,8}){0,2}, [a-z0-9_]{2,10}@[a-z]{2,8}\.(org|com)";
    vec![
        kind("schema, object", schema(&person), move |text| {
            let json = serde_json::from_str(text).unwrap_or_default();
            has(&json, &[("name", &word), ("age", &age), ("mood", &mood)])
        }),
        kind("schema, array", schema(&list), move |text| {
            let json: Vec<Json> = serde_json::from_str(text).unwrap_or_default();
            (1..=3).contains(&json.len()) && json.iter().all(&entry)
        }),
        of_pattern(
            "pattern, date",
            date,
            Grammar::regex(date).expect("a grammar"),
        ),
        of_pattern(
            "pattern, name",
            name,
            Grammar::regex(name).expect("a grammar"),
        ),
        of_pattern(
            "GBNF, sum",
            &format!("{term}( [+-] {term}){{0,3}} = {number}"),
            Grammar::gbnf(sum).expect("a grammar"),
        ),
    ]
}

#[test]
fn constrained_texts_parse() {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS") else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return;
    };
    let path = Path::new(&folder).join("smollm2-135m-q4_1/model.gguf");
    let asked = std::env::var("CUPOLA_CONSTRAINED").ok();
    let count: usize = asked.map_or(20, |n| n.parse().expect("a number"));
    let model = TextModel::open(path, &Host::new(), &Options::default(), None).expect("a model");
    let options = EngineOptions {
        slots: 16,
        queue: count,
        ..EngineOptions::new(256)
    };
    let mut engine = model.engine(16 * 256, options).expect("an engine");
    let trie = Arc::new(TokenTrie::of(
        &model.tokenizer,
        engine.decoder().vocab_len(),
    ));
    let kinds = kinds();
    let makers: Vec<Constrainer> = kinds
        .iter()
        .map(|kind| Constrainer::new(&kind.grammar, trie.clone()))
        .collect();
    let prompt = "An example, of any kind:\n";
    let prompt = model.tokenizer.encode(prompt, true, true).expect("tokens");
    let (start, mut texts) = (Instant::now(), BTreeMap::new());
    for i in 0..count {
        let request = Request {
            prompt: prompt.clone(),
            most: 200,
            sampling: Sampling {
                temperature: 1.2,
                seed: i as u64,
                ..Sampling::default()
            },
            end_tokens: model.tokenizer.end_tokens().into(),
            log_probs: None,
            constraint: Some(Box::new(makers[i % kinds.len()].start()) as Box<dyn Constraint>),
        };
        let id = engine.submit(request).expect("taken");
        texts.insert(id, (i % kinds.len(), vec![]));
    }
    let (mut parsed, mut tokens) = (vec![0usize; kinds.len()], 0);
    while !engine.is_idle() {
        for event in engine.step().expect("a step") {
            match event {
                Event::Token {
                    sequence, token, ..
                } => {
                    tokens += 1;
                    texts.get_mut(&sequence).expect("a text").1.push(token);
                }
                Event::Finished {
                    sequence, reason, ..
                } => {
                    let (kind, tokens) = &texts[&sequence];
                    let text = model.tokenizer.decode(tokens, true);
                    let Kind { name, judge, .. } = &kinds[*kind];
                    let ended =
                        matches!(reason, FinishReason::EndToken(_) | FinishReason::Constraint);
                    assert!(ended, "{name}: {text:?} ended by {reason:?}");
                    assert!(judge(&text), "{name}: {text:?}");
                    parsed[*kind] += 1;
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Prefill { .. } => {}
            }
        }
    }
    let rate = f64::from(tokens) / start.elapsed().as_secs_f64();
    for (kind, parsed) in kinds.iter().zip(&parsed) {
        println!("{}: {parsed} texts parse", kind.name);
    }
    println!("{tokens} tokens, {rate:.0} a second");
    assert_eq!(parsed.iter().sum::<usize>(), count);
}
