//! Texts held to grammars: what they allow, and that whatever a random model writes under them is what they say.

use std::sync::Arc;

use cupola_llm::constrain::{Constrainer, ConstraintError, Grammar, TokenTrie};
use cupola_llm::{Constraint, TokenMask};
use serde_json::{Value, json};

/// A vocabulary with every byte and pieces that begin in one part of a JSON text and end in another.
fn vocabulary() -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let pieces = [
        "{\"",
        "\":",
        "\": ",
        "\", \"",
        "\",",
        "\"}",
        "}}",
        "]}",
        "],",
        "},",
        "},{",
        "[{",
        "[[",
        "[]",
        "{}",
        "true",
        "false",
        "null",
        ": [",
        ": \"",
        ", ",
        "\n  ",
        "\n",
        "    ",
        "name",
        "age",
        "id",
        "value",
        "items",
        "hello",
        " world",
        "12",
        "345",
        "0.5",
        "-1",
        "e10",
        "\\n",
        "\\u",
        "00e9",
        "é",
        "世界",
        "😀",
        "\u{1f600}\"",
        "abc",
        "xyz",
        "foo",
        "bar",
        "tru",
        "nul",
        "1,",
        "2]",
        "\"a",
        "a\"",
        "-0",
        "2024",
        "-01",
        "T10:",
        ":00Z",
        "red",
        "\"red\"",
        "green",
    ];
    tokens.extend(pieces.iter().map(|piece| piece.as_bytes().to_vec()));
    tokens.push(vec![]);
    tokens
}

struct Model {
    tokens: Vec<Vec<u8>>,
    trie: Arc<TokenTrie>,
    end: u32,
    random: u64,
}

impl Model {
    fn new(seed: u64) -> Model {
        let tokens = vocabulary();
        let end = tokens.len() as u32 - 1;
        let trie = TokenTrie::new(tokens.len(), |id| &tokens[id as usize], &[end]);
        Model {
            trie: Arc::new(trie),
            tokens: tokens.clone(),
            end,
            random: seed,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % limit
    }

    /// A text of random tokens. After `patience` of them those are preferred that end what was begun.
    fn write(&mut self, constrainer: &Constrainer, patience: usize) -> String {
        let mut constraint = constrainer.start();
        let mut mask = TokenMask::none(self.tokens.len());
        let mut text = vec![];
        for written in 0..patience * 40 {
            constraint.mask(&mut mask);
            let allowed: Vec<u32> = mask.iter().collect();
            assert!(
                !allowed.is_empty(),
                "nothing leads on from {:?}",
                String::from_utf8_lossy(&text)
            );
            let end = self.end;
            let tokens = &self.tokens;
            let closing = [&b""[..], b"\"", b"}", b"]", b")"]
                .into_iter()
                .find_map(|mark| {
                    let is_mark = |&&t: &&u32| {
                        if mark.is_empty() {
                            t == end
                        } else {
                            tokens[t as usize] == mark
                        }
                    };
                    allowed.iter().find(is_mark).copied()
                });
            let token = match closing {
                Some(token) if written > patience && self.below(3) > 0 => token,
                _ => allowed[self.below(allowed.len())],
            };
            if token == self.end {
                return String::from_utf8(text).expect("texts of grammars are UTF-8");
            }
            text.extend_from_slice(&self.tokens[token as usize]);
            constraint.accept(token);
        }
        panic!("no end: {:?}", String::from_utf8_lossy(&text));
    }
}

/// Whether a value is what a schema says: the part of JSON Schema that the tests use, written down a second time.
fn is_valid(value: &Value, schema: &Value, document: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(&reference[1..]).expect("a target");
        return is_valid(value, target, document);
    }
    let one_of = |name: &str| {
        schema[name]
            .as_array()
            .is_none_or(|all| all.iter().any(|one| is_valid(value, one, document)))
    };
    let all_of = schema["allOf"]
        .as_array()
        .is_none_or(|all| all.iter().all(|one| is_valid(value, one, document)));
    if !one_of("anyOf") || !one_of("oneOf") || !all_of {
        return false;
    }
    let is_type = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    let types = match &schema["type"] {
        Value::String(kind) => is_type(kind),
        Value::Array(kinds) => kinds
            .iter()
            .any(|kind| is_type(kind.as_str().expect("a type"))),
        _ => true,
    };
    let constant = schema.get("const").is_none_or(|only| only == value);
    let listed = schema["enum"]
        .as_array()
        .is_none_or(|all| all.contains(value));
    types && constant && listed && is_valid_inside(value, schema, document)
}

fn is_valid_inside(value: &Value, schema: &Value, document: &Value) -> bool {
    let within = |len: f64, min: &str, max: &str| {
        schema[min].as_f64().is_none_or(|min| len >= min)
            && schema[max].as_f64().is_none_or(|max| len <= max)
    };
    match value {
        Value::String(text) => {
            let pattern = schema["pattern"].as_str();
            within(text.chars().count() as f64, "minLength", "maxLength")
                && pattern.is_none_or(|p| regex::Regex::new(p).expect("a pattern").is_match(text))
        }
        Value::Number(number) => {
            let number = number.as_f64().expect("a number");
            within(number, "minimum", "maximum")
                && schema["exclusiveMinimum"]
                    .as_f64()
                    .is_none_or(|min| number > min)
                && schema["exclusiveMaximum"]
                    .as_f64()
                    .is_none_or(|max| number < max)
        }
        Value::Array(items) => {
            let first = schema["prefixItems"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            within(items.len() as f64, "minItems", "maxItems")
                && items.iter().enumerate().all(|(at, item)| {
                    match (first.get(at), schema.get("items")) {
                        (Some(own), _) => is_valid(item, own, document),
                        (None, Some(rest)) => is_valid(item, rest, document),
                        (None, None) => true,
                    }
                })
        }
        Value::Object(members) => {
            let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
            within(members.len() as f64, "minProperties", "maxProperties")
                && required
                    .iter()
                    .all(|name| members.contains_key(name.as_str().expect("a name")))
                && members.iter().all(|(name, member)| {
                    match (
                        schema["properties"].get(name),
                        schema.get("additionalProperties"),
                    ) {
                        (Some(own), _) => is_valid(member, own, document),
                        (None, Some(Value::Bool(allowed))) => *allowed,
                        (None, Some(other)) => is_valid(member, other, document),
                        (None, None) => true,
                    }
                })
        }
        Value::Null | Value::Bool(_) => true,
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "boolean"}, "c": {"type": ["string", "null"]}}}),
        json!({"type": "object", "properties": {"name": {"const": 1}, "na": {"const": 2}}, "required": ["na"], "additionalProperties": {"type": "string"}}),
        json!({"type": "array", "items": {"type": "number", "minimum": -12.5, "maximum": 1000}, "minItems": 2, "maxItems": 5}),
        json!({"type": "array", "prefixItems": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "boolean"}], "items": {"type": "null"}}),
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"}, "items": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}, "required": ["value"]}}}),
        json!({"anyOf": [{"type": "string", "pattern": "^[a-z]{2,5}-\\d+\"?$"}, {"enum": ["red", "green", 3, null, {"x": [1]}]}, {"const": "é\"\\\n"}]}),
        json!({"type": "string", "pattern": "[b-w]+[^a-y\"]"}),
        json!({"allOf": [{"type": "object", "properties": {"id": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 4}}, "required": ["id"]}, {"properties": {"foo": {"type": "string", "maxLength": 3}}, "required": ["foo"]}]}),
        json!({"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]}, {"type": "array", "items": {"type": "array", "maxItems": 1}, "maxItems": 2}]}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 3}),
        json!({"type": "number", "exclusiveMinimum": -0.5, "maximum": 2}),
        json!({"type": "integer", "minimum": -1234, "maximum": 98765}),
        json!({}),
    ]
}

#[test]
fn a_thousand_random_texts_are_what_their_schema_says() {
    let mut model = Model::new(0x9e37_79b9_7f4a_7c15);
    for schema in schemas() {
        let grammar = Grammar::json_schema(&schema).expect("a schema");
        let constrainer = Constrainer::new(&grammar, model.trie.clone());
        for _ in 0..80 {
            let text = model.write(&constrainer, 60);
            assert!(grammar.allows(text.as_bytes()), "{text}");
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
            assert!(is_valid(&value, &schema, &schema), "{schema}: {text}");
        }
    }
    let object = Constrainer::new(&Grammar::json_object(), model.trie.clone());
    for _ in 0..80 {
        let text = model.write(&object, 80);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(value.is_object(), "{text}");
    }
}

#[test]
fn formats_are_what_they_say() {
    let mut model = Model::new(77);
    for (format, pattern) in [
        ("date", r"^\d{4}-\d\d-\d\d$"),
        (
            "date-time",
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
        ),
        ("uuid", r"^[0-9a-fA-F-]{36}$"),
        ("ipv4", r"^(\d{1,3}\.){3}\d{1,3}$"),
        ("email", r"^[^@\s]+@[^@\s]+\.[a-zA-Z]+$"),
    ] {
        let grammar =
            Grammar::json_schema(&json!({"type": "string", "format": format})).expect("a schema");
        let constrainer = Constrainer::new(&grammar, model.trie.clone());
        let pattern = regex::Regex::new(pattern).expect("a pattern");
        for _ in 0..30 {
            let text: String =
                serde_json::from_str(&model.write(&constrainer, 100)).expect("a string");
            assert!(pattern.is_match(&text), "{format}: {text}");
        }
    }
}

#[test]
fn schemas_allow_and_refuse() {
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["age"]});
    let open = json!({"properties": {"a": {"type": "null"}}, "additionalProperties": true, "type": "object"});
    for (schema, text, allowed) in [
        (&person, r#"{"name":"x","age":3}"#, true),
        (&person, "{\n  \"name\": \"x\",\n  \"age\": 3\n}", true),
        (&person, r#"{ "age": 3 }"#, true),
        (&person, r#"{"name":"x"}"#, false),
        (&person, r#"{"age":3,"name":"x"}"#, false),
        (&person, r#"{"age":03}"#, false),
        (&person, r#"{"age":3"#, false),
        (&person, r#"{"age":3}x"#, false),
        (&open, r#"{"a":null,"b":[1,{"c":"\u00e9"}]}"#, true),
        (&open, r#"{"ab":1,"":2}"#, true),
        (&open, r#"{"b":1,"a":2}"#, false),
        (&open, r#"{"\u0061":2}"#, false),
        (&open, "{}", true),
    ] {
        let grammar = Grammar::json_schema(schema).expect("a schema");
        assert_eq!(grammar.allows(text.as_bytes()), allowed, "{text}");
    }
    let bounds = |low: i64, high: i64, number: i64| {
        let grammar =
            Grammar::json_schema(&json!({"type": "integer", "minimum": low, "maximum": high}));
        grammar
            .expect("a schema")
            .allows(number.to_string().as_bytes())
    };
    for (low, high) in [
        (0, 0),
        (-7, 12),
        (95, 1003),
        (-250, -99),
        (-1, 100_000),
        (7, 7),
    ] {
        for number in low - 30..=(high + 30).min(low + 3000) {
            assert_eq!(
                bounds(low, high, number),
                (low..=high).contains(&number),
                "{low} {high} {number}"
            );
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused() {
    let of = |schema: Value| match Grammar::json_schema(&schema) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{schema}"),
    };
    assert!(of(json!({"not": {}})).contains("'not' is not supported, at #"));
    assert!(of(json!({"type": "array", "uniqueItems": true})).contains("uniqueItems"));
    assert!(of(json!({"type": "integer", "multipleOf": 3})).contains("multipleOf"));
    assert!(of(json!({"type": "frog"})).contains("frog"));
    assert!(of(json!({"properties": {"a": {"type": 1}}})).contains("#/properties/a"));
    assert!(of(json!({"$ref": "#/nowhere"})).contains("#/nowhere"));
    assert!(of(json!({"$ref": "http://example.org/a"})).contains("another document"));
    assert!(of(json!({"$ref": "#"})).contains("begins with itself"));
    assert!(of(json!({"type": "string", "minLength": 3, "maxLength": 2})).contains("maxLength"));
    assert!(of(json!({"type": "string", "maxLength": 4_000_000_000u32})).contains("too large"));
    assert!(of(json!({"type": "string", "pattern": "("})).contains("pattern"));
    assert!(
        of(json!({"required": ["a"], "additionalProperties": false})).contains("'a' is required")
    );
    assert!(of(json!(3)).contains("must be an object"));
    let mut deep = json!({"type": "null"});
    for _ in 0..500 {
        deep = json!({"items": deep});
    }
    assert!(of(deep).contains("too large"));
}

#[test]
fn patterns_match_whole_texts() {
    for (pattern, yes, no) in [
        ("abc", &["abc"][..], &["ab", "abcd", ""][..]),
        ("^a|b$", &["a", "b"], &["ab", ""]),
        ("(ab)*c?", &["", "ab", "ababc", "c"], &["abcab", "a"]),
        (
            r"\d{2,3}-[^x\d]",
            &["12-a", "123-é", "12-世"],
            &["1-a", "12-x", "12-3"],
        ),
        ("(?i)yes|no", &["YES", "no", "No"], &["y", "yesno"]),
        (r"\p{Greek}+.", &["αβγ!", "α😀"], &["a!", "α\n"]),
        ("x{0}y", &["y"], &["xy"]),
    ] {
        let grammar = Grammar::regex(pattern).expect("a pattern");
        for text in yes {
            assert!(grammar.allows(text.as_bytes()), "{pattern} {text}");
        }
        for text in no {
            assert!(!grammar.allows(text.as_bytes()), "{pattern} {text}");
        }
    }
    assert!(matches!(
        Grammar::regex("a("),
        Err(ConstraintError::Pattern(_))
    ));
    assert!(matches!(
        Grammar::regex(r"a\bb"),
        Err(ConstraintError::Unsupported { .. })
    ));
    assert!(matches!(
        Grammar::regex("(((a{1000}){1000}){1000}){1000}"),
        Err(ConstraintError::TooLarge(_))
    ));
    assert!(matches!(
        Grammar::regex("(|){4000000000}(()*)*x"),
        Ok(_) | Err(ConstraintError::TooLarge(_))
    ));
}

const ARITHMETIC: &str = r##"
# sums of products
root  ::= sum "\n"? # the end of a line
sum   ::= product (ws [-+] ws product)*
product ::= factor
    | factor ws ("*" | "/") ws product
factor ::= number | "(" ws sum ws ")" | "\x78" | [^\x00-\x7f]
number ::= [0-9]{1,3} ("." [0-9]+)?
ws ::= " "?
"##;

#[test]
fn grammars_allow_and_refuse() {
    let grammar = Grammar::gbnf(ARITHMETIC).expect("a grammar");
    for text in ["1", "12 + 3*(x - 4.5)", "((((x))))\n", "é*😀", "1*2*3*4*5"] {
        assert!(grammar.allows(text.as_bytes()), "{text}");
    }
    for text in ["", "1234", "1 +", "(1", "1)", "a", "1\n\n"] {
        assert!(!grammar.allows(text.as_bytes()), "{text}");
    }
    let mut model = Model::new(5);
    let constrainer = Constrainer::new(&grammar, model.trie.clone());
    for _ in 0..50 {
        let text = model.write(&constrainer, 40);
        assert!(grammar.allows(text.as_bytes()), "{text}");
    }
}

#[test]
fn wrong_grammars_say_where() {
    for (source, message) in [
        ("", "no rule 'root'"),
        ("root ::= a", "'a' does not exist"),
        ("root ::= \"a", "'\"' is missing, line 1"),
        ("\nroot ::= [a", "']' is missing, line 2"),
        ("root ::= (\"a\"", "')' is missing"),
        ("root = \"a\"", "'::=' is missing"),
        ("root ::= \"a\"\nroot ::= \"b\"", "there twice, line 2"),
        ("root ::= \"\\q\"", "escape"),
        ("root ::= \"\\ud800\"", "no character"),
        ("root ::= [z-a]", "ends before"),
        ("root ::= \"a\"{3,2}", "fewer times"),
        ("root ::= \"a\"{99999999999}", "too large"),
        ("root ::= \"a\" )", "')' is not expected"),
        ("root ::= <tool>", "not supported"),
        ("root ::= root \"a\" | \"b\"", "begins with itself: root"),
        ("root ::= a \"x\"\na ::= \"\"? root", "begins with itself"),
    ] {
        let error = Grammar::gbnf(source).expect_err(source).to_string();
        assert!(error.contains(message), "{source:?}: {error}");
    }
    let nested = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(
        Grammar::gbnf(&nested),
        Err(ConstraintError::TooLarge(_))
    ));
}

#[test]
fn a_text_that_can_only_end_ends() {
    let model = Model::new(1);
    let grammar = Grammar::regex("true|null").expect("a pattern");
    let mut constraint = Constrainer::new(&grammar, model.trie.clone()).start();
    let mut mask = TokenMask::none(model.tokens.len());
    constraint.mask(&mut mask);
    let name = |token: u32| String::from_utf8_lossy(&model.tokens[token as usize]).into_owned();
    let mut names: Vec<String> = mask.iter().map(name).collect();
    names.sort();
    assert_eq!(names, ["n", "nul", "null", "t", "tru", "true"]);
    let id = |text: &str| {
        model
            .tokens
            .iter()
            .position(|t| t == text.as_bytes())
            .expect("a token") as u32
    };
    constraint.accept(id("nul"));
    assert!(!constraint.accepts());
    constraint.accept(id("l"));
    assert!(constraint.accepts());
    constraint.mask(&mut mask);
    assert_eq!(mask.iter().collect::<Vec<_>>(), [model.end]);
    constraint.accept(model.end);
    constraint.mask(&mut mask);
    assert_eq!(mask.count(), 0);
}

#[test]
fn many_states_are_forgotten_and_found_again() {
    let model = Model::new(1);
    let grammar = Grammar::gbnf("root ::= \"a\" root \"b\" | \"c\"{0,40000}").expect("a grammar");
    let constrainer = Constrainer::new(&grammar, model.trie.clone());
    let mut constraint = constrainer.start();
    let mut mask = TokenMask::none(model.tokens.len());
    for _ in 0..17_000 {
        constraint.mask(&mut mask);
        assert!(mask.contains(u32::from(b'c')));
        constraint.accept(u32::from(b'c'));
    }
    let mut other = constrainer.start();
    other.accept(u32::from(b'a'));
    other.accept(u32::from(b'b'));
    assert!(other.accepts());
}
