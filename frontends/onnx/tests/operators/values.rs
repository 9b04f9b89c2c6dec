//! Results against stored values, with stated and with open extents.

use crate::common::{compare, import_for};
use crate::node::{Case, Extents, FILES};
use cupola_ir::tensor::Value;
use cupola_ir::{eval, verify};

fn run(case: &Case, extents: Extents) -> Result<(), String> {
    let model = case.model(extents).map_err(|e| e.to_string())?;
    let given = case.given();
    let graph = import_for(&model, &given).map_err(|e| e.to_string())?.graph;
    verify(&graph).map_err(|e| e.to_string())?;
    let values: Vec<Value> = given.into_iter().map(|(_, v)| v).collect();
    let got = eval::run(&graph, &values, &mut eval::Env::default()).map_err(|e| e.to_string())?;
    let want = case.outputs.iter().flatten();
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let want = Value::Tensor(want.clone());
        compare(got, &want, case.tolerance).map_err(|e| format!("result {i}: {e}"))?;
    }
    Ok(())
}

#[test]
fn results_are_those_of_other_runtimes() {
    let mut wrong = vec![];
    for case in FILES.into_iter().flat_map(Case::all) {
        for extents in [Extents::Stated, Extents::Open] {
            if let Err(e) = run(&case, extents) {
                wrong.push(format!("{} ({extents:?}): {e}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
