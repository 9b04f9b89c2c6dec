//! Losses of whole trainings of small models beside those of PyTorch from the same weights (`fixtures/make.py`), on the
//! reference interpreter.

mod support;

use cupola_ir::{DType, Dim, Tensor};
use cupola_train::layers::{BatchNorm, Conv, Pool};
use cupola_train::zoo::{self, Model};
use cupola_train::{Clip, CrossEntropy, Memory, Net, Optimiser, StepOptions};
use support::fixture::Fixture;
use support::{Run, close, each, numbers, scalar};

fn entry(t: &Tensor, at: usize) -> Tensor {
    let (count, shape) = (t.shape()[0], &t.shape()[1..]);
    let size = t.bytes().len() / count;
    let at = at % count;
    let bytes = t.bytes()[at * size..(at + 1) * size].to_vec();
    Tensor::new(t.dtype(), shape.to_vec(), bytes.into()).expect("an entry")
}

/// A model with its optimiser, rate and clipping, by the name of the case.
fn case(name: &str) -> (Model, Optimiser, f64, Option<Clip>) {
    match name {
        "mlp" => (zoo::mlp(&[4, 8, 3]).unwrap(), Optimiser::adam(), 0.02, None),
        "mlp_dropout" => (dropout(), Optimiser::adam(), 0.02, None),
        "cnn" => (cnn(), Optimiser::momentum(0.9), 0.02, None),
        "lstm_lm" => (lstm(), Optimiser::adam(), 0.02, None),
        "gpt" => (gpt(), Optimiser::adamw(), 0.01, Some(Clip::Norm(1.0))),
        other => panic!("{other} is not tested"),
    }
}

/// Trains and compares every loss with PyTorch's.
fn compare(name: &str, options: StepOptions, tolerance: f64) {
    let fixture = Fixture::read("curves");
    let (mut model, optimiser, lr, clip) = case(name);
    let weights = fixture.roles(name, "p.");
    let unknown = model.net.load(&weights).expect("weights fit");
    assert!(unknown.is_empty(), "{unknown:?}");
    let own = model.net.parameters().len() + model.net.buffers().len();
    assert_eq!(own, weights.len());
    let options = StepOptions { clip, ..options };
    let step = model.net.train_step(model.loss, &optimiser, &options);
    let mut r = Run::new(step.expect("a step"));
    let want = numbers(fixture.get(name, "loss"));
    let mut got = vec![];
    for k in 0..want.len() {
        let [x, t] = ["x", "t"].map(|role| entry(fixture.get(name, role), k));
        got.push(scalar(&r.step(lr, &[("x", x), ("labels", t)])["loss"]));
    }
    // Means over three batches, which is all that some models have.
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&got[..3]), mean(&got[got.len() - 3..]));
    assert!(last < 0.9 * first, "{name} does not learn: {got:?}");
    close(name, &got, &want, tolerance, tolerance * want[0]);
}

/// Dropout of the input and of the hidden layer.
fn dropout() -> Model {
    let mut net = Net::new("dropout");
    let batch = Dim::sym("batch");
    let dims = [batch.clone(), 4usize.into()];
    let x = net.input("x", DType::F32, dims).unwrap();
    let labels = net.input("labels", DType::I64, [batch]).unwrap();
    let h = net.dropout(x, 0.1).unwrap();
    let h = net.linear("fc1", h, 8).unwrap();
    let h = net.relu(h).unwrap();
    let h = net.dropout(h, 0.25).unwrap();
    let y = net.linear("fc2", h, 3).unwrap();
    let usual = CrossEntropy::default();
    let loss = net.cross_entropy(y, labels, &usual).unwrap();
    Model { net, loss, y }
}

fn cnn() -> Model {
    let mut net = Net::new("cnn");
    let batch = Dim::sym("batch");
    let dims = [batch.clone(), 1usize.into(), 6usize.into(), 6usize.into()];
    let x = net.input("x", DType::F32, dims).unwrap();
    let labels = net.input("labels", DType::I64, [batch]).unwrap();
    let h = net.conv("c1", x, &Conv::new(4, [3, 3]).padding(1)).unwrap();
    let h = net.batch_norm("n1", h, &BatchNorm::default()).unwrap();
    let h = net.relu(h).unwrap();
    let h = net.max_pool(h, &Pool::new([2, 2])).unwrap();
    let h = net.flatten(h, 1).unwrap();
    let y = net.linear("f1", h, 3).unwrap();
    let loss = net
        .cross_entropy(y, labels, &CrossEntropy::default())
        .unwrap();
    Model { net, loss, y }
}

fn lstm() -> Model {
    zoo::lstm_lm(&zoo::Lstm {
        vocabulary: 11,
        embedding: 5,
        hidden: 6,
        layers: 2,
        dropout: 0.0,
    })
    .unwrap()
}

fn gpt() -> Model {
    zoo::gpt(&zoo::Gpt {
        vocabulary: 11,
        width: 8,
        layers: 2,
        heads: 2,
        context: 9,
        dropout: 0.0,
    })
    .unwrap()
}

fn plain() -> StepOptions {
    StepOptions::default()
}

fn low(dtype: DType) -> StepOptions {
    StepOptions {
        autocast: Some(dtype),
        scaler: (dtype == DType::F16).then(Default::default),
        ..plain()
    }
}

#[test]
fn models_learn_as_in_pytorch() {
    let names = ["mlp", "mlp_dropout", "cnn", "lstm_lm", "gpt"];
    each(names.into_iter(), |name| {
        compare(name, plain(), 1e-3);
    });
}

#[test]
fn models_learn_in_mixed_precision_too() {
    each(["mlp", "cnn", "lstm_lm", "gpt"].into_iter(), |name| {
        // Ten times the distance of two numbers of the type.
        compare(name, low(DType::F16), 0.01);
        compare(name, low(DType::BF16), 0.08);
    });
}

#[test]
fn less_memory_changes_no_loss() {
    let (mut model, optimiser, lr, clip) = case("gpt");
    let fixture = Fixture::read("curves");
    model
        .net
        .load(&fixture.roles("gpt", "p."))
        .expect("weights fit");
    let losses = |budget: Option<u64>| {
        let sizes = vec![("batch".to_string(), 2), ("steps".to_string(), 6)];
        let memory = budget.map(|budget| Memory { budget, sizes });
        let options = StepOptions {
            clip,
            memory,
            ..plain()
        };
        let step = model.net.train_step(model.loss, &optimiser, &options);
        let mut r = Run::new(step.expect("a step"));
        let kept = r.step.kept;
        let all: Vec<f64> = (0..4)
            .map(|k| {
                let [x, t] = ["x", "t"].map(|role| entry(fixture.get("gpt", role), k));
                scalar(&r.step(lr, &[("x", x), ("labels", t)])["loss"])
            })
            .collect();
        (all, kept)
    };
    let (plain, none) = losses(None);
    let (again, kept) = losses(Some(0));
    assert_eq!(plain, again);
    let kept = kept.expect("a limit");
    assert!(
        none.is_none() && kept.again > 0 && kept.after < kept.before / 2,
        "{kept:?}"
    );
}
