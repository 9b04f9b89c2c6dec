//! Steps of several shards on the reference interpreter, each on a thread of its own: what one step on the whole batch gives.

mod support;

use cupola_ir::eval::{Exchange, combine};
use cupola_ir::ops::Collective;
use cupola_ir::{DType, Dim, Tensor, ValueId};
use cupola_train::{CrossEntropy, Net, Optimiser, SHARE, StepOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, Mutex};
use support::{Run, close, numbers};

/// What all shards have given to the collective at hand.
struct Meeting {
    given: Mutex<Vec<Vec<Tensor>>>,
    barrier: Barrier,
}

impl Meeting {
    /// The results of a collective, combined in a tree of neighbours.
    fn meet(&self, at: usize, op: &Collective, operands: &[&Tensor]) -> Vec<Tensor> {
        self.given.lock().expect("no panic")[at] = operands.iter().map(|t| (*t).clone()).collect();
        self.barrier.wait();
        let mut all = self.given.lock().expect("no panic").clone();
        while all.len() > 1 {
            let pairs = all.chunks(2).map(|pair| {
                let each = pair[0].iter().zip(&pair[1]);
                each.map(|(a, b)| combine(op.kind, a, b).expect("a tensor"))
                    .collect()
            });
            all = pairs.collect();
        }
        self.barrier.wait();
        all.swap_remove(0)
    }
}

type Inputs = Vec<(&'static str, Tensor)>;
type Numbers = BTreeMap<String, Vec<f64>>;

/// Outputs and slots after two steps of a net in `parts.len()` shards, those of the first shard; all have the same slots.
fn trained(net: &Net, loss: ValueId, parts: &[Inputs]) -> Numbers {
    let options = StepOptions {
        shards: parts.len(),
        grad_norm: true,
        ..StepOptions::default()
    };
    let step = net.train_step(loss, &Optimiser::momentum(0.9), &options);
    let step = step.expect("a step");
    let meeting = Arc::new(Meeting {
        given: Mutex::new(vec![vec![]; parts.len()]),
        barrier: Barrier::new(parts.len()),
    });
    let each: Vec<Numbers> = std::thread::scope(|threads| {
        let started: Vec<_> = (parts.iter().enumerate())
            .map(|(at, inputs)| {
                let (step, meeting) = (step.clone(), meeting.clone());
                threads.spawn(move || {
                    let mut run = Run::new(step);
                    run.env.exchange = Some(Exchange(Arc::new(move |op, operands| {
                        Ok(meeting.meet(at, op, operands))
                    })));
                    run.step(0.2, inputs);
                    let out = run.step(0.2, inputs);
                    let mut all: Numbers =
                        out.iter().map(|(n, t)| (n.clone(), numbers(t))).collect();
                    for slot in &run.step.slots {
                        all.insert(slot.name.clone(), run.slot(&slot.name));
                    }
                    all
                })
            })
            .collect();
        let ended = started.into_iter().map(|t| t.join().expect("no panic"));
        ended.collect()
    });
    let slots = |all: &Numbers| format!("{all:?}");
    assert!(each.iter().all(|all| slots(all) == slots(&each[0])));
    each[0].clone()
}

/// Six samples of two numbers; `labels` are those of the samples.
fn samples(labels: &[i64], from: usize, to: usize) -> Inputs {
    let x: Vec<f32> = (2 * from..2 * to)
        .map(|i| (i as f32 * 0.7).sin() * 2.0)
        .collect();
    vec![
        ("x", Tensor::from_slice(&[to - from, 2], &x).expect("rows")),
        ("labels", Tensor::vector(&labels[from..to])),
    ]
}

fn classifier(settings: &CrossEntropy, by_nll: bool) -> (Net, ValueId) {
    let mut net = Net::new("classes");
    let batch = Dim::sym("batch");
    let dims = [batch.clone(), 2usize.into()];
    let x = net.input("x", DType::F32, dims).expect("an input");
    let labels = net.input("labels", DType::I64, [batch]).expect("an input");
    let y = net.linear("fc", x, 3).expect("a layer");
    let accuracy = net.accuracy(y, labels, settings.ignore).expect("a metric");
    net.metric("accuracy", accuracy);
    let loss = match by_nll {
        true => {
            let logs = net.log_softmax(y).expect("a layer");
            net.nll(logs, labels, settings)
        }
        false => net.cross_entropy(y, labels, settings),
    };
    (net, loss.expect("a loss"))
}

/// Four shards of two, two, two and no samples, which has the last to stand in.
fn cut(labels: &[i64]) -> Vec<Inputs> {
    let parts = [(0, 2, 1.0), (2, 4, 1.0), (4, 6, 1.0), (5, 6, 0.0)];
    let shard = |(from, to, share): (usize, usize, f32)| {
        let mut inputs = samples(labels, from, to);
        inputs.push((SHARE, Tensor::scalar(share / 3.0)));
        inputs
    };
    parts.into_iter().map(shard).collect()
}

#[test]
fn targets_that_are_ignored_count_in_no_shard() {
    let plain = CrossEntropy::default();
    let other = CrossEntropy {
        ignore: 1,
        smoothing: 0.1,
        weight: Some(vec![1.0, 5.0, 0.25]),
        ..CrossEntropy::default()
    };
    // The first shard has no target that counts, the second one, the third two.
    for (settings, by_nll, labels) in [
        (&plain, false, [-100, -100, 2, -100, 0, 1]),
        (&plain, true, [-100, -100, 2, -100, 0, 1]),
        (&other, false, [1, 1, 0, 1, 2, 2]),
        (&plain, false, [0, 1, 2, 0, 1, 2]),
    ] {
        let (net, loss) = classifier(settings, by_nll);
        let whole = trained(&net, loss, &[samples(&labels, 0, 6)]);
        let shards = trained(&net, loss, &cut(&labels));
        assert!(whole["loss"][0] > 0.0 && whole["accuracy"][0].is_finite());
        for (name, want) in &whole {
            close(name, &shards[name], want, 2e-6, 1e-7);
        }
    }
}

#[test]
fn a_batch_without_targets_has_no_loss() {
    let (net, loss) = classifier(&CrossEntropy::default(), false);
    let labels = [-100; 6];
    for parts in [vec![samples(&labels, 0, 6)], cut(&labels)] {
        assert!(trained(&net, loss, &parts)["loss"][0].is_nan());
    }
}
