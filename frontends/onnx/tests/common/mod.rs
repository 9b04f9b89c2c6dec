//! What tests and the case runner share: importing with what the importer asks for, and comparing values.

use cupola_ir::convert::lanes;
use cupola_ir::tensor::{Tensor, Value};
use cupola_ir::{DType, ValueType};
use cupola_onnx::{ImportError, ImportOptions, Imported, Model, import};

/// Imports a model, giving the importer the values and types of inputs that it asks for.
pub fn import_for(model: &Model, given: &[(String, Value)]) -> Result<Imported, ImportError> {
    let mut options = ImportOptions::default();
    loop {
        let (values, types) = match import(model, &options) {
            Err(ImportError::NeedsInputs { values, types }) => (values, types),
            other => return other,
        };
        let mut progress = false;
        for name in &values {
            if let Some((_, Value::Tensor(t))) = given.iter().find(|(n, _)| n == name) {
                progress |= options
                    .known_inputs
                    .insert(name.clone(), t.clone())
                    .is_none();
            }
        }
        for name in &types {
            if let Some((_, v)) = given.iter().find(|(n, _)| n == name)
                && let Some(ty) = type_of(v)
            {
                progress |= options.input_types.insert(name.clone(), ty).is_none();
            }
        }
        if !progress {
            return Err(ImportError::NeedsInputs { values, types });
        }
    }
}

fn type_of(v: &Value) -> Option<ValueType> {
    Some(match v {
        Value::Tensor(t) => ValueType::Tensor(t.ty()),
        Value::Sequence(v) => ValueType::Sequence(Box::new(type_of(v.first()?)?)),
        Value::Optional(v) => ValueType::Optional(Box::new(type_of(v.as_deref()?)?)),
    })
}

/// What differs by more than `atol + rtol * |want|`, if anything.
pub fn compare(got: &Value, want: &Value, tolerance: (f64, f64)) -> Result<(), String> {
    match (got, want) {
        (Value::Tensor(g), Value::Tensor(w)) => tensors(g, w, tolerance),
        (Value::Sequence(g), Value::Sequence(w)) if g.len() == w.len() => g
            .iter()
            .zip(w)
            .try_for_each(|(g, w)| compare(g, w, tolerance)),
        (Value::Optional(None), Value::Optional(None)) => Ok(()),
        (Value::Optional(Some(g)), Value::Optional(Some(w))) => compare(g, w, tolerance),
        _ => Err(format!("{got:?} instead of {want:?}")),
    }
}

fn tensors(g: &Tensor, w: &Tensor, (rtol, atol): (f64, f64)) -> Result<(), String> {
    if g.shape() != w.shape() || g.dtype() != w.dtype() {
        return Err(format!("{g:?} instead of {w:?}"));
    }
    if let (Some(g), Some(w)) = (g.strings(), w.strings()) {
        return if g == w {
            Ok(())
        } else {
            Err(format!("{g:?} instead of {w:?}"))
        };
    }
    let rtol = if w.dtype() == DType::BF16 {
        rtol.max(1.0 / 64.0)
    } else {
        rtol
    };
    let wide = |t: &Tensor| lanes(t).map_or(vec![], |l| l.into_f64s());
    let (gv, wv) = (wide(g), wide(w));
    if gv.len() != wv.len() || gv.len() != w.len() {
        return Err(format!("no numbers in {g:?}"));
    }
    let bad = |a: f64, b: f64| {
        !(a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= atol + rtol * b.abs())
    };
    let count = gv.iter().zip(&wv).filter(|(a, b)| bad(**a, **b)).count();
    match gv.iter().zip(&wv).position(|(a, b)| bad(*a, *b)) {
        None => Ok(()),
        Some(i) => {
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let relative =
                norm(&mut gv.iter().zip(&wv).map(|(a, b)| a - b)) / norm(&mut wv.iter().copied());
            Err(format!(
                "{count} of {} differ, first at {i}: {} instead of {}, L2 {relative:.1e}",
                gv.len(),
                gv[i],
                wv[i]
            ))
        }
    }
}
