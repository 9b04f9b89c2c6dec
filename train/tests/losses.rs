//! Every loss and its gradient beside those of PyTorch (`fixtures/make.py`), on the reference interpreter.

mod support;

use cupola_ir::eval::Env;
use cupola_ir::{DType, Dim, Graph, Tensor, TensorType, ValueId};
use cupola_passes::autodiff::vjp;
use cupola_train::{CrossEntropy, Divergence, Net, Reduction, Result};
use std::collections::BTreeMap;
use support::fixture::Fixture;
use support::{close, each, numbers, run};

/// Appends a loss of a value and a target.
type Loss = fn(&mut Net, ValueId, ValueId) -> Result<ValueId>;

const WEIGHT: [f32; 5] = [0.5, 2.0, 1.0, 0.25, 3.0];

fn ce() -> CrossEntropy {
    CrossEntropy::default()
}

fn weighted() -> CrossEntropy {
    CrossEntropy {
        weight: Some(WEIGHT.to_vec()),
        ..ce()
    }
}

fn smooth(c: CrossEntropy, smoothing: f64) -> CrossEntropy {
    CrossEntropy { smoothing, ..c }
}

fn reduced(c: CrossEntropy, reduction: Reduction) -> CrossEntropy {
    CrossEntropy { reduction, ..c }
}

fn but(c: CrossEntropy, ignore: i64) -> CrossEntropy {
    CrossEntropy { ignore, ..c }
}

const LOSSES: &[(&str, Loss)] = &[
    ("ce", |n, x, t| n.cross_entropy(x, t, &ce())),
    ("ce_sum", |n, x, t| {
        n.cross_entropy(x, t, &reduced(ce(), Reduction::Sum))
    }),
    ("ce_none", |n, x, t| {
        n.cross_entropy(x, t, &reduced(ce(), Reduction::None))
    }),
    ("ce_weight", |n, x, t| n.cross_entropy(x, t, &weighted())),
    ("ce_smooth", |n, x, t| {
        n.cross_entropy(x, t, &smooth(ce(), 0.1))
    }),
    ("ce_smooth_weight", |n, x, t| {
        n.cross_entropy(x, t, &smooth(weighted(), 0.2))
    }),
    ("ce_smooth_none", |n, x, t| {
        n.cross_entropy(x, t, &reduced(smooth(weighted(), 0.2), Reduction::None))
    }),
    ("ce_ignore", |n, x, t| n.cross_entropy(x, t, &but(ce(), 2))),
    ("ce_all_ignored", |n, x, t| n.cross_entropy(x, t, &ce())),
    ("ce_large", |n, x, t| n.cross_entropy(x, t, &ce())),
    ("ce_one", |n, x, t| n.cross_entropy(x, t, &ce())),
    ("ce_images", |n, x, t| {
        n.cross_entropy(x, t, &smooth(weighted(), 0.1))
    }),
    ("ce_soft", |n, x, t| n.cross_entropy(x, t, &ce())),
    ("ce_soft_all", |n, x, t| {
        n.cross_entropy(x, t, &smooth(weighted(), 0.1))
    }),
    ("ce_soft_images", |n, x, t| {
        n.cross_entropy(x, t, &reduced(ce(), Reduction::None))
    }),
    ("nll", |n, x, t| n.nll(x, t, &ce())),
    ("nll_weight", |n, x, t| n.nll(x, t, &but(weighted(), 2))),
    ("nll_images_none", |n, x, t| {
        n.nll(x, t, &reduced(weighted(), Reduction::None))
    }),
    ("mse_mean", |n, x, t| n.mse(x, t, Reduction::Mean)),
    ("mse_sum", |n, x, t| n.mse(x, t, Reduction::Sum)),
    ("mse_none", |n, x, t| n.mse(x, t, Reduction::None)),
    ("l1_mean", |n, x, t| n.l1(x, t, Reduction::Mean)),
    ("l1_sum", |n, x, t| n.l1(x, t, Reduction::Sum)),
    ("l1_none", |n, x, t| n.l1(x, t, Reduction::None)),
    ("huber_mean", |n, x, t| n.huber(x, t, 1.0, Reduction::Mean)),
    ("huber_sum", |n, x, t| n.huber(x, t, 1.0, Reduction::Sum)),
    ("huber_none", |n, x, t| n.huber(x, t, 1.0, Reduction::None)),
    ("huber_delta", |n, x, t| n.huber(x, t, 0.5, Reduction::Mean)),
    ("smooth_l1_mean", |n, x, t| {
        n.smooth_l1(x, t, 1.0, Reduction::Mean)
    }),
    ("smooth_l1_sum", |n, x, t| {
        n.smooth_l1(x, t, 1.0, Reduction::Sum)
    }),
    ("smooth_l1_none", |n, x, t| {
        n.smooth_l1(x, t, 1.0, Reduction::None)
    }),
    ("smooth_l1_beta", |n, x, t| {
        n.smooth_l1(x, t, 0.5, Reduction::Mean)
    }),
    ("smooth_l1_zero", |n, x, t| {
        n.smooth_l1(x, t, 0.0, Reduction::Mean)
    }),
    ("bce", |n, x, t| {
        n.bce_with_logits(x, t, None, Reduction::Mean)
    }),
    ("bce_positive", |n, x, t| {
        n.bce_with_logits(x, t, Some(&[1.0, 2.0, 0.5, 3.0]), Reduction::Mean)
    }),
    ("bce_none", |n, x, t| {
        n.bce_with_logits(x, t, None, Reduction::None)
    }),
    ("kl_mean", |n, x, t| {
        n.kl_div(x, t, false, Divergence::Elements(Reduction::Mean))
    }),
    ("kl_sum", |n, x, t| {
        n.kl_div(x, t, false, Divergence::Elements(Reduction::Sum))
    }),
    ("kl_none", |n, x, t| {
        n.kl_div(x, t, false, Divergence::Elements(Reduction::None))
    }),
    ("kl_batchmean", |n, x, t| {
        n.kl_div(x, t, false, Divergence::BatchMean)
    }),
    ("kl_log", |n, x, t| {
        n.kl_div(x, t, true, Divergence::BatchMean)
    }),
];

fn env() -> Env {
    Env::default()
}

/// The loss and its gradient for the fixture's operands in `dtype`.
fn backward(fixture: &Fixture, name: &str, loss: Loss, dtype: DType) -> Graph {
    let mut net = Net::new(name);
    let input = |net: &mut Net, role: &str| {
        let t = fixture.get(name, role);
        let mut dims: Vec<Dim> = t.shape().iter().map(|d| Dim::from(*d)).collect();
        if dims.len() > 1 || role == "t" {
            dims.iter_mut().take(1).for_each(|d| *d = Dim::sym("rows"));
        }
        let dtype = if t.dtype() == DType::F32 {
            dtype
        } else {
            t.dtype()
        };
        net.input(role, dtype, dims).expect("an input")
    };
    let (x, t) = (input(&mut net, "x"), input(&mut net, "t"));
    let y = loss(&mut net, x, t).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut g = net.graph;
    let c = TensorType {
        dtype: g.dtype(y),
        dims: g.dims(y),
    };
    let c = g.input("c", c).expect("an input");
    let grads = vjp(&mut g, &[(y, c)], &[x]).unwrap_or_else(|e| panic!("{name}: {e}"));
    g.output("y", y);
    g.output("g.x", grads[0].expect("a gradient"));
    g.compact().expect("an order");
    g
}

fn operands(fixture: &Fixture, name: &str, dtype: DType, wide: DType) -> BTreeMap<String, Tensor> {
    let cast = |role: &str, dtype: DType| {
        let t = fixture.get(name, role);
        match t.dtype() {
            DType::F32 => cupola_ir::convert::cast(t, dtype, true).expect("a float"),
            _ => t.clone(),
        }
    };
    let roles = [("x", dtype), ("t", dtype), ("c", wide)];
    roles
        .iter()
        .map(|(r, d)| (r.to_string(), cast(r, *d)))
        .collect()
}

#[test]
fn losses_agree_with_pytorch() {
    let fixture = Fixture::read("losses");
    each(LOSSES.iter().map(|(n, _)| *n), |name| {
        let (_, loss) = LOSSES.iter().find(|(n, _)| *n == name).expect("a loss");
        let g = backward(&fixture, name, *loss, DType::F32);
        let got = run(
            &g,
            &operands(&fixture, name, DType::F32, DType::F32),
            &mut env(),
        );
        for role in ["y", "g.x"] {
            let want = fixture.get(name, role);
            assert_eq!(got[role].shape(), want.shape(), "{name} {role}");
            close(
                &format!("{name} {role}"),
                &numbers(&got[role]),
                &numbers(want),
                1e-5,
                1e-6,
            );
        }
    });
    let names: Vec<&str> = LOSSES.iter().map(|(n, _)| *n).collect();
    for case in fixture.cases() {
        assert!(names.contains(&case.as_str()), "{case} is not tested");
    }
}

#[test]
fn losses_of_narrow_scores_are_computed_in_f32() {
    let fixture = Fixture::read("losses");
    for (name, loss) in LOSSES {
        let g = backward(&fixture, name, *loss, DType::BF16);
        let got = run(
            &g,
            &operands(&fixture, name, DType::BF16, DType::F32),
            &mut env(),
        );
        assert_eq!(got["y"].dtype(), DType::F32, "{name}");
        assert_eq!(got["g.x"].dtype(), DType::BF16, "{name}");
    }
}

#[test]
fn cross_entropy_has_the_gradient_of_its_decomposition() {
    let fixture = Fixture::read("losses");
    for (name, loss) in LOSSES.iter().filter(|(n, _)| n.starts_with("ce")) {
        let own = backward(&fixture, name, *loss, DType::F64);
        let inputs = operands(&fixture, name, DType::F64, DType::F64);
        let got = run(&own, &inputs, &mut env());
        // Second derivatives go through the statistics that the forward pass gives.
        let mut net = Net::new(name);
        let mut values = vec![];
        for role in ["x", "t"] {
            let t = &inputs[role];
            values.push(
                net.input(role, t.dtype(), t.shape().to_vec())
                    .expect("an input"),
            );
        }
        let y = loss(&mut net, values[0], values[1]).expect("a loss");
        let mut g = net.graph;
        let ty = g.tensor(y);
        let c = g.input("c", ty).expect("an input");
        let dx = vjp(&mut g, &[(y, c)], &values[..1]).expect("a gradient")[0].expect("one");
        let d = g.input("d", g.tensor(dx)).expect("an input");
        let ddx = vjp(&mut g, &[(dx, d)], &values[..1]).expect("a gradient")[0].expect("one");
        g.output("ddx", ddx);
        g.compact().expect("an order");
        let direction: Vec<f64> = (0..inputs["x"].len())
            .map(|i| (i as f64 * 0.7).sin())
            .collect();
        let d = Tensor::from_slice(inputs["x"].shape(), &direction).expect("a direction");
        let mut with = inputs.clone();
        with.insert("d".into(), d);
        let second = numbers(&run(&g, &with, &mut env())["ddx"]);
        if *name == "ce_all_ignored" {
            continue;
        }
        // The derivative of the gradient along the direction, by a central difference.
        let at = |step: f64| {
            let moved: Vec<f64> = (numbers(&inputs["x"]).iter().zip(&direction))
                .map(|(x, d)| x + step * d)
                .collect();
            let mut with = inputs.clone();
            with.insert(
                "x".into(),
                Tensor::from_slice(inputs["x"].shape(), &moved).expect("x"),
            );
            numbers(&run(&own, &with, &mut env())["g.x"])
        };
        let step = 1e-5;
        let (up, down) = (at(step), at(-step));
        let slope: Vec<f64> = up
            .iter()
            .zip(&down)
            .map(|(u, d)| (u - d) / (2.0 * step))
            .collect();
        close(&format!("{name} second"), &second, &slope, 1e-6, 1e-8);
        assert_eq!(got["g.x"].len(), direction.len());
    }
}

#[test]
fn a_class_that_does_not_exist_fails_the_run() {
    let mut net = Net::new("n");
    let x = net.input("x", DType::F32, [2usize, 3]).unwrap();
    let t = net.input("t", DType::I64, [2usize]).unwrap();
    let y = net.cross_entropy(x, t, &ce()).unwrap();
    let graph = net.eval_graph(&[("y", y)]).unwrap();
    let x = Tensor::from_slice(&[2, 3], &[0.0f32; 6]).unwrap();
    let inputs = [x.into(), Tensor::vector(&[0i64, 3]).into()];
    assert!(cupola_ir::eval::run(&graph, &inputs, &mut env()).is_err());
    let e = net.cross_entropy(
        x_of(&net),
        t,
        &CrossEntropy {
            weight: Some(vec![1.0]),
            ..ce()
        },
    );
    assert!(e.unwrap_err().to_string().contains("1 weights"));
}

fn x_of(net: &Net) -> ValueId {
    net.graph.inputs()[0]
}
