//! Comparison of values with a tolerance, by the rules of the ONNX suite.

use cupola::ir::convert::{self, Lanes};
use cupola::{DType, Tensor, Value};

/// Tolerance: `|got - want| <= atol + rtol * |want|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Relative.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
    /// Raise both to what GPU precision rules call for.
    pub device: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest relative difference.
    pub max_rel: f64,
    /// Largest absolute difference over the root mean square of what was expected.
    pub max_rms: f64,
    /// Where and how much the first element outside differs; empty when all are inside.
    pub detail: String,
}

impl Difference {
    /// Whether everything is inside the tolerance.
    pub fn is_ok(&self) -> bool {
        self.detail.is_empty()
    }

    fn fail(detail: String) -> Difference {
        Difference {
            max_abs: f64::INFINITY,
            max_rel: f64::INFINITY,
            max_rms: f64::INFINITY,
            detail,
        }
    }

    /// Both: the larger differences and the first detail.
    #[must_use]
    pub fn join(self, other: Difference) -> Difference {
        Difference {
            max_abs: self.max_abs.max(other.max_abs),
            max_rel: self.max_rel.max(other.max_rel),
            max_rms: self.max_rms.max(other.max_rms),
            detail: if self.detail.is_empty() {
                other.detail
            } else {
                self.detail
            },
        }
    }
}

/// Compares two values of one name.
pub fn values(name: &str, got: &Value, want: &Value, tolerance: Tolerance) -> Difference {
    match (got, want) {
        (Value::Tensor(g), Value::Tensor(w)) => tensors(name, g, w, tolerance),
        (Value::Sequence(g), Value::Sequence(w)) if g.len() == w.len() => {
            let each = g.iter().zip(w).enumerate();
            each.fold(Difference::default(), |d, (i, (g, w))| {
                d.join(values(&format!("{name}[{i}]"), g, w, tolerance))
            })
        }
        (Value::Sequence(g), Value::Sequence(w)) => Difference::fail(format!(
            "{name}: {} elements, expected {}",
            g.len(),
            w.len()
        )),
        (Value::Optional(None), Value::Optional(None)) => Difference::default(),
        (Value::Optional(Some(g)), Value::Optional(Some(w))) => values(name, g, w, tolerance),
        _ => Difference::fail(format!("{name}: another kind of value")),
    }
}

fn tensors(name: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Difference {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        let (g, w) = (got.ty(), want.ty());
        return Difference::fail(format!("{name}: {g}, expected {w}"));
    }
    if let (Some(g), Some(w)) = (got.strings(), want.strings()) {
        return match g.iter().zip(w).position(|(g, w)| g != w) {
            None => Difference::default(),
            Some(i) => Difference::fail(format!("{name}[{i}]: {:?}, expected {:?}", g[i], w[i])),
        };
    }
    let (Some(g), Some(w)) = (convert::lanes(got), convert::lanes(want)) else {
        return if got.bytes() == want.bytes() {
            Difference::default()
        } else {
            Difference::fail(format!("{name}: bytes differ"))
        };
    };
    match (&g, &w) {
        (Lanes::F(g), Lanes::F(w)) => numbers(name, g, w, raised(tolerance, want.dtype(), w)),
        (Lanes::I(g), Lanes::I(w)) => {
            let wide = |v: &[i64]| v.iter().map(|x| *x as f64).collect::<Vec<_>>();
            numbers(name, &wide(g), &wide(w), tolerance)
        }
        (Lanes::U(g), Lanes::U(w)) => {
            let exact = Tolerance {
                rtol: 0.0,
                atol: 0.0,
                device: false,
            };
            let wide = |v: &[u64]| v.iter().map(|x| *x as f64).collect::<Vec<_>>();
            numbers(
                name,
                &wide(g),
                &wide(w),
                if want.dtype() == DType::Bool {
                    exact
                } else {
                    tolerance
                },
            )
        }
        _ => unreachable!("bug: one dtype, two classes"),
    }
}

/// The tolerance for a dtype: the official rule for bfloat16; with `device` floors for what WGSL leaves open.
fn raised(t: Tolerance, dtype: DType, want: &[f64]) -> Tolerance {
    let (mut rtol, mut atol) = (t.rtol, t.atol);
    let mut floor = |r: f64, a: f64| {
        rtol = rtol.max(r);
        atol = atol.max(a);
    };
    match (dtype, t.device) {
        (DType::BF16, false) => floor(2f64.powi(-6), 0.0),
        (DType::BF16, true) => floor(2f64.powi(-5), 1e-2),
        (DType::F16, true) => floor(1e-2, 2e-3),
        (DType::F32, true) => {
            let top = want
                .iter()
                .filter(|x| x.is_finite())
                .fold(0.0f64, |m, x| m.max(x.abs()));
            floor(2e-3, 1e-5 * top.clamp(1.0, 1e4));
        }
        _ => {}
    }
    Tolerance {
        rtol,
        atol,
        device: t.device,
    }
}

fn numbers(name: &str, got: &[f64], want: &[f64], t: Tolerance) -> Difference {
    let mut all = Difference::default();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if g == w || (g.is_nan() && w.is_nan()) {
            continue;
        }
        let d = (g - w).abs();
        let finite = if d.is_finite() { d } else { f64::INFINITY };
        all.max_abs = all.max_abs.max(finite);
        all.max_rel = all.max_rel.max(if *w == 0.0 || !w.is_finite() {
            finite
        } else {
            finite / w.abs()
        });
        // Written so that a NaN difference is outside.
        let inside = d <= t.atol + t.rtol * w.abs();
        if !inside && all.detail.is_empty() {
            all.detail = format!("{name}[{i}]: {g}, expected {w}");
        }
    }
    let squares: f64 = want.iter().map(|w| w * w).sum();
    let rms = (squares / want.len().max(1) as f64).sqrt();
    if all.max_abs > 0.0 {
        all.max_rms = all.max_abs / rms;
    }
    all
}
