//! Replicas in one process and over links: every collective, in every dtype, against the interpreter's combination of the same
//! operands; buckets; failures.

use cupola_ir::eval::combine;
use cupola_ir::ops::{Collective, CollectiveKind};
use cupola_ir::{DType, Graph, Scalar, Tensor, TensorType, Value, convert};
use cupola_passes::Step;
use cupola_runtime::{
    CompileOptions, DeviceSpec, Group, Host, Idle, Link, Program, Recording, Replica, Request,
    RuntimeError, Session, Turn,
};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

const KINDS: [CollectiveKind; 4] = [
    CollectiveKind::AllReduceSum,
    CollectiveKind::AllReduceMax,
    CollectiveKind::AllGather,
    CollectiveKind::Broadcast,
];

/// What the replicas make of their operands, pairs of neighbours first.
fn expected(kind: CollectiveKind, mut all: Vec<Tensor>) -> Tensor {
    while all.len() > 1 {
        let pairs = all.chunks(2);
        all = pairs
            .map(|p| combine(kind, &p[0], &p[1]).expect("equal types"))
            .collect();
    }
    all.remove(0)
}

/// Numbers that are not exact in any sum.
fn operand(dtype: DType, shape: &[usize], replica: usize) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len)
        .map(|i| ((i * 7 + replica * 13) % 23) as f32 / 3.0 - 2.0)
        .collect();
    let values = match dtype.class() {
        cupola_ir::dtype::Class::Bool => values.iter().map(|v| f32::from(*v > 2.0)).collect(),
        cupola_ir::dtype::Class::Unsigned => values.iter().map(|v| v.abs()).collect(),
        _ => values,
    };
    let tensor = Tensor::from_slice(shape, &values).expect("a tensor");
    convert::cast(&tensor, dtype, true).expect("numbers")
}

/// `y` = the collective of `x`, for each of the types.
fn graph(kind: CollectiveKind, types: &[(DType, Vec<usize>)], replicas: usize) -> Graph {
    let mut g = Graph::new("exchange");
    let op = Collective { kind, replicas };
    let inputs: Vec<_> = (types.iter().enumerate())
        .map(|(i, (dtype, shape))| {
            let ty = TensorType::new(*dtype, shape.iter().copied());
            g.input(&format!("x{i}"), ty).expect("an input")
        })
        .collect();
    // Kernels make the operands and use the results.
    for (i, x) in inputs.into_iter().enumerate() {
        let made = match g.dtype(x) {
            DType::Bool => x,
            _ => g.binary(Scalar::Add, x, x).expect("a sum"),
        };
        let y = g.one(op.clone(), &[made]).expect("a collective");
        g.output(&format!("y{i}"), y);
    }
    g
}

/// A session for every replica of a group.
fn sessions(graph: &Graph, device: &DeviceSpec, replicas: &[Arc<Replica>]) -> Vec<Session> {
    let options = CompileOptions {
        device: device.clone(),
        threads: 1,
        ..CompileOptions::default()
    };
    let shared = Host::new();
    let each = replicas.iter().map(|replica| {
        let own = Host::new();
        // A processor's replicas have threads of their own; a GPU is opened once.
        let host = if matches!(device, DeviceSpec::Gpu(_)) {
            &shared
        } else {
            &own
        };
        let program = Program::compile(graph.clone(), host, &options).expect("a program");
        let mut session = Session::new(Arc::new(program));
        session.state_mut().replica = Some(replica.clone());
        session
    });
    each.collect()
}

/// Runs all at once on inputs by replica; outputs by replica.
fn run(sessions: &mut [Session], inputs: &[Vec<Tensor>]) -> Vec<Result<Vec<Value>, RuntimeError>> {
    let each = sessions.iter_mut().zip(inputs);
    let pending: Vec<_> = each
        .map(|(session, tensors)| {
            let each = tensors.iter().enumerate();
            let request = each.fold(Request::new(), |r, (i, t)| {
                r.input(&format!("x{i}"), t.clone())
            });
            session.submit(request).expect("a thread")
        })
        .collect();
    let each = pending.into_iter().map(|p| {
        let outputs = p.wait()?;
        outputs.iter().map(|(_, v)| v.to_host()).collect()
    });
    each.collect()
}

fn doubled(t: &Tensor) -> Tensor {
    match t.dtype() {
        DType::Bool => t.clone(),
        _ => combine(CollectiveKind::AllReduceSum, t, t).expect("a sum"),
    }
}

fn check(kind: CollectiveKind, types: &[(DType, Vec<usize>)], device: &DeviceSpec, count: usize) {
    let group = Group::new(count, None).expect("a group");
    let replicas = group.replicas(|_| None);
    let mut sessions = sessions(&graph(kind, types, count), device, &replicas);
    let inputs: Vec<Vec<Tensor>> = (0..count)
        .map(|r| types.iter().map(|(d, s)| operand(*d, s, r)).collect())
        .collect();
    for _ in 0..3 {
        for outputs in run(&mut sessions, &inputs) {
            let outputs = outputs.expect("a run");
            for (i, got) in outputs.iter().enumerate() {
                let given = inputs.iter().map(|all| doubled(&all[i])).collect();
                let wanted = expected(kind, given);
                assert_eq!(got.as_tensor(), Some(&wanted), "{kind:?} {:?}", types[i]);
            }
        }
    }
}

#[test]
fn every_collective_of_every_dtype_is_what_the_interpreter_says() {
    let dtypes = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::Bool,
    ];
    for kind in KINDS {
        let types: Vec<(DType, Vec<usize>)> = (dtypes.iter())
            .filter(|d| **d != DType::Bool || kind != CollectiveKind::AllReduceSum)
            .flat_map(|d| [(*d, vec![3, 5]), (*d, vec![0, 4])])
            .collect();
        for device in [DeviceSpec::Cpu, DeviceSpec::Reference] {
            for count in [2, 4] {
                check(kind, &types, &device, count);
            }
        }
    }
    let scalar = [(DType::F32, vec![])];
    check(CollectiveKind::AllReduceSum, &scalar, &DeviceSpec::Cpu, 2);
}

#[test]
fn one_device_computes_its_shards_in_turn() {
    let types = [(DType::F32, vec![1000]), (DType::F32, vec![2, 2])];
    let graph = graph(CollectiveKind::AllReduceSum, &types, 4);
    let group = Group::new(4, None).expect("a group");
    let turn = Turn::default();
    let replicas = group.replicas(|_| Some(turn.clone()));
    let mut sessions = sessions(&graph, &DeviceSpec::Cpu, &replicas);
    let inputs: Vec<Vec<Tensor>> = (0..4)
        .map(|r| types.iter().map(|(d, s)| operand(*d, s, r)).collect())
        .collect();
    let wanted = expected(
        CollectiveKind::AllReduceSum,
        inputs.iter().map(|all| doubled(&all[0])).collect(),
    );
    for outputs in run(&mut sessions, &inputs) {
        assert_eq!(outputs.expect("a run")[0].as_tensor(), Some(&wanted));
    }
}

#[test]
fn operands_of_a_gpu_pass_through_the_host() {
    if std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_none() {
        return;
    }
    let types = [(DType::F32, vec![33, 7]), (DType::I32, vec![5])];
    for kind in KINDS {
        check(kind, &types, &DeviceSpec::Gpu(0), 2);
    }
}

/// Two ends of a wire.
struct Wire {
    rank: usize,
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
}

impl Link for Wire {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        2
    }

    fn exchange(&mut self, with: usize, bytes: Vec<u8>, _: &Idle) -> Result<Vec<u8>, String> {
        assert_eq!(with, 1 - self.rank);
        self.to.send(bytes).map_err(|e| e.to_string())?;
        self.from.recv().map_err(|_| "the other has ended".into())
    }
}

fn wires() -> [Wire; 2] {
    let ((to_b, from_a), (to_a, from_b)) = (channel(), channel());
    let a = Wire {
        rank: 0,
        to: to_b,
        from: from_b,
    };
    let b = Wire {
        rank: 1,
        to: to_a,
        from: from_a,
    };
    [a, b]
}

#[test]
fn processes_have_the_bits_of_one() {
    let types = [(DType::F32, vec![4, 3]), (DType::F16, vec![5])];
    let inputs: Vec<Vec<Tensor>> = (0..4)
        .map(|r| types.iter().map(|(d, s)| operand(*d, s, r)).collect())
        .collect();
    for kind in KINDS {
        let groups = wires().map(|w| Group::new(2, Some(Box::new(w))).expect("a group"));
        let replicas: Vec<Arc<Replica>> =
            groups.iter().flat_map(|g| g.replicas(|_| None)).collect();
        let numbers: Vec<usize> = replicas.iter().map(|r| r.number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        let mut sessions = sessions(&graph(kind, &types, 4), &DeviceSpec::Cpu, &replicas);
        for outputs in run(&mut sessions, &inputs) {
            for (i, got) in outputs.expect("a run").iter().enumerate() {
                let given = inputs.iter().map(|all| doubled(&all[i])).collect();
                assert_eq!(got.as_tensor(), Some(&expected(kind, given)), "{kind:?}");
            }
        }
    }
}

#[test]
fn a_link_that_fails_ends_all_replicas() {
    let [a, b] = wires();
    drop(b);
    let group = Group::new(2, Some(Box::new(a))).expect("a group");
    let replicas = group.replicas(|_| None);
    let types = [(DType::F32, vec![2])];
    let graph = graph(CollectiveKind::AllReduceSum, &types, 4);
    let mut sessions = sessions(&graph, &DeviceSpec::Cpu, &replicas);
    let inputs = vec![vec![operand(DType::F32, &[2], 0)]; 2];
    for result in run(&mut sessions, &inputs) {
        let error = result.expect_err("no other process").to_string();
        assert!(error.contains("the replicas cannot go on"), "{error}");
    }
}

#[test]
fn one_that_fails_ends_all() {
    let types = [(DType::F32, vec![2])];
    let graph = graph(CollectiveKind::AllReduceSum, &types, 2);
    let group = Group::new(2, None).expect("a group");
    let replicas = group.replicas(|_| None);
    let mut sessions = sessions(&graph, &DeviceSpec::Cpu, &replicas);
    sessions[1].cancel_handle().cancel();
    let inputs = vec![vec![operand(DType::F32, &[2], 0)]; 2];
    let results = run(&mut sessions, &inputs);
    let error = results[0].as_ref().expect_err("the other was cancelled");
    assert_eq!(error.to_string(), "replica 1 failed: cancelled");
    assert!(matches!(results[1], Err(RuntimeError::Cancelled)));
    // It stays so.
    assert!(run(&mut sessions, &inputs).iter().all(Result::is_err));
}

#[test]
fn operands_of_different_types_and_wrong_numbers_are_refused() {
    let group = Group::new(2, None).expect("a group");
    let replicas = group.replicas(|_| None);
    let kind = CollectiveKind::AllReduceSum;
    let numbers = [
        replicas[0].begin(kind, vec![Tensor::scalar(1.0f32)]),
        replicas[1].begin(kind, vec![Tensor::scalar(1i64)]),
    ];
    for (replica, number) in replicas.iter().zip(numbers) {
        let error = replica.end(number.expect("begun")).expect_err("types");
        assert!(error.to_string().contains("replicas give"), "{error}");
    }
    assert!(Group::new(3, None).is_err());
    // Alone, a program of two replicas cannot run.
    let types = [(DType::F32, vec![2])];
    let program = Program::compile(
        graph(kind, &types, 2),
        &Host::new(),
        &CompileOptions::default(),
    );
    let mut session = Session::new(Arc::new(program.expect("a program")));
    let request = Request::new().input("x0", operand(DType::F32, &[2], 0));
    let error = session.execute(request).expect_err("no others").to_string();
    assert!(error.contains("takes 2 replicas"), "{error}");
}

#[test]
fn sums_that_nothing_waits_for_travel_together_while_kernels_run() {
    let replicas = 2;
    let mut g = Graph::new("buckets");
    let ty = TensorType::new(DType::F32, [64usize, 64]);
    let x = g.input("x0", ty).expect("an input");
    let sum = Collective {
        kind: CollectiveKind::AllReduceSum,
        replicas,
    };
    // A chain of products; each link's result is summed over replicas, which nothing waits for.
    let (mut link, mut sums) = (x, vec![]);
    for _ in 0..6 {
        link = g.matmul(link, x).expect("a product");
        link = g.scale(link, 0.05).expect("a factor");
        sums.push(g.one(sum.clone(), &[link]).expect("a sum"));
    }
    for (i, y) in sums.iter().enumerate() {
        g.output(&format!("y{i}"), *y);
    }
    let group = Group::new(2, None).expect("a group");
    let places = group.replicas(|_| None);
    let mut sessions = sessions(&g, &DeviceSpec::Cpu, &places);
    sessions[0].state_mut().recording = Some(Recording::new());
    let inputs: Vec<Vec<Tensor>> = (0..2)
        .map(|r| vec![operand(DType::F32, &[64, 64], r)])
        .collect();
    let outputs = run(&mut sessions, &inputs);
    let recording = sessions[0].state_mut().recording.take().expect("notes");
    // 16 KiB each: four make a bucket, which is on its way while the last two are computed.
    let travels = recording.travels.iter().map(|t| (t.tensors, t.bytes));
    assert_eq!(travels.collect::<Vec<_>>(), [(4, 65536), (2, 32768)]);
    assert!(recording.travels.iter().all(|t| t.start <= t.end));
    let plan = &sessions[0].program().compiled().expect("a plan").plan;
    let at = |wanted: fn(&Step) -> bool| {
        let found = plan.steps.iter().enumerate().filter(|(_, s)| wanted(s));
        found.map(|(at, _)| at).collect::<Vec<_>>()
    };
    let begun = at(|s| matches!(s, Step::Collective { .. }));
    let (launched, waited) = (
        at(|s| matches!(s, Step::Launch { .. })),
        at(|s| matches!(s, Step::Await { .. })),
    );
    let between = launched
        .iter()
        .filter(|l| begun[0] < **l && **l < waited[0]);
    assert!(between.count() >= 2, "{begun:?} {launched:?} {waited:?}");
    // Against the interpreter on the same values.
    let group = Group::new(2, None).expect("a group");
    let places = group.replicas(|_| None);
    let mut plain = self::sessions(&g, &DeviceSpec::Reference, &places);
    let wanted = run(&mut plain, &inputs);
    for (got, wanted) in outputs.iter().zip(&wanted) {
        let (got, wanted) = (got.as_ref().expect("a run"), wanted.as_ref().expect("one"));
        for (a, b) in got.iter().zip(wanted) {
            let numbers = |v: &Value| v.as_tensor().and_then(Tensor::to_vec::<f32>);
            let (a, b) = (numbers(a).expect("f32"), numbers(b).expect("f32"));
            for (x, y) in a.iter().zip(&b) {
                assert!((x - y).abs() <= 1e-3 * (1.0 + y.abs()), "{x} {y}");
            }
        }
    }
}
