//! Chat templates render as `transformers` renders them, on what `make_templates.py` writes.

use cupola_text::{ChatTemplate, TextError};
use serde_json::{Map, Value, json};

#[test]
fn templates_render_as_their_authors_see_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/templates.json");
    let data: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("cases")).expect("JSON");
    let special = data["special"].as_object().expect("special tokens");
    let cases = data["cases"].as_array().expect("cases");
    assert!(cases.len() > 200);
    let mut wrong = vec![];
    for case in cases {
        let name = case["template"].as_str().expect("a name");
        let source = data["templates"][name].as_str().expect("a template");
        let template = ChatTemplate::new(source, special.clone()).expect(name);
        let tools = (case["tools"] == true).then_some(&data["tools"]);
        let extra = case["extra"].as_object().expect("variables");
        let text = template.render(&case["messages"], tools, case["prompt"] == true, extra);
        let expected = case["text"].as_str();
        if text.as_deref().ok() != expected {
            wrong.push(format!(
                "{name} {}\n  {expected:?}\n  {text:?}",
                case["messages"]
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn refusals_and_damage_are_errors() {
    let refused = |source: &str| {
        let template = ChatTemplate::new(source, Map::new())?;
        template.render(
            &json!([{"role": "user", "content": "x"}]),
            None,
            true,
            &Map::new(),
        )
    };
    let message = |source: &str| match refused(source) {
        Err(error @ TextError::Template(_)) => error.to_string(),
        other => panic!("{source}: {other:?}"),
    };
    assert!(
        message("{{ raise_exception('roles must alternate') }}").contains("roles must alternate")
    );
    assert!(message("{% for x in %}").contains("line 1"));
    assert!(message("{{ messages[0].content.nothing() }}").contains("nothing"));
    let endless =
        "{% for a in range(90000) %}{% for b in range(90000) %}{{ a }}{% endfor %}{% endfor %}";
    assert!(message(endless).contains("fuel"));
    assert!(message("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
}
