//! Sessions as callers use them: values on devices, preallocated outputs, submitted runs, limits, threads.
//!
//! The CPU is always tried, a GPU where `CUPOLA_TEST_REQUIRE_GPU` is set.

use cupola_ir::graph::text::parse;
use cupola_ir::{DType, Graph, Tensor, Value};
use cupola_runtime::{
    CompileOptions, DeviceSpec, Event, Host, Place, Program, Recording, Request, RunLimits,
    RunValue, RuntimeError, Session, Weights,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// `y = 2 x + 1`, and `z`, the same elements with other extents.
const AFFINE: &str = r#"graph @affine {
  %0 = input {name: "x", ty: f32[$n, 4]} : f32[$n, 4] "x"
  %1 = const {value: tensor f32[1, 1] [2.0]}
  %2 = broadcast(%1) {dims: [$n, 4]}
  %3 = map(%0, %2) {f: "mul"}
  %4 = const {value: tensor f32[1, 1] [1.0]}
  %5 = broadcast(%4) {dims: [$n, 4]}
  %6 = map(%3, %5) {f: "add"}
  %7 = reshape(%6) {dims: [4*$n]}
  return "y" = %6, "z" = %7
}"#;

/// Adds the input to a state slot and gives the new value.
const COUNTER: &str = r#"graph @counter {
  slot "sum": f32[3] = tensor f32[3] [0.0, 0.0, 0.0]
  %0 = input {name: "x", ty: f32[3]} : f32[3] "x"
  %1 = read_state {slot: "sum", ty: f32[3]}
  %2 = map(%0, %1) {f: "add"}
  %3 = write_state(%2) {slot: "sum"}
  %4 = map(%3) {f: "neg"}
  return "y" = %4
}"#;

/// Adds 1 to `c` as often as `trips` says and gives every value on the way.
const LOOP: &str = r#"graph @loop {
  %0 = input {name: "trips", ty: i64[]} : i64[] "trips"
  %1 = input {name: "c", ty: f32[2]} : f32[2] "c"
  %2 = const {value: tensor bool[] [true]}
  %3, %4 = loop(%0, %2, %1) {body: graph @body {
    %0 = input {name: "i", ty: i64[]} : i64[] "i"
    %1 = input {name: "c", ty: f32[2]} : f32[2] "c"
    %2 = const {value: tensor f32[2] [1.0, 1.0]}
    %3 = map(%1, %2) {f: "add"}
    %4 = const {value: tensor bool[] [true]}
    return "go" = %4, "next" = %3, "seen" = %3
  }, carried: 1, results: [f32[2], f32[$k, 2]], binds: [$k]}
  return "last" = %3, "all" = %4
}"#;

fn graph(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    cupola_ir::graph::verify(&graph).expect("a valid graph");
    graph
}

fn program(text: &str, device: &DeviceSpec) -> Arc<Program> {
    let options = CompileOptions {
        device: device.clone(),
        threads: 1,
        verify: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph(text), &Host::new(), &options);
    Arc::new(program.unwrap_or_else(|e| panic!("{e}")))
}

/// The devices with memory.
fn devices() -> Vec<DeviceSpec> {
    let gpu = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").map(|_| DeviceSpec::Gpu(0));
    std::iter::once(DeviceSpec::Cpu).chain(gpu).collect()
}

fn matrix(rows: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * 4).map(|i| i as f32 * 0.5).collect();
    Tensor::from_slice(&[rows, 4], &values).expect("four columns")
}

fn floats(value: &RunValue) -> Vec<f32> {
    let value = value.to_host().expect("a value");
    value.as_tensor().and_then(Tensor::to_vec).expect("floats")
}

fn on_device(value: &RunValue) -> bool {
    matches!(value, RunValue::Device(_))
}

#[test]
fn outputs_that_stay_on_the_device_are_inputs_of_the_next_run() {
    for device in devices() {
        let program = program(AFFINE, &device);
        let mut session = Session::new(program.clone());
        let mut x: RunValue = program.upload(&matrix(3)).expect("memory").into();
        for _ in 0..3 {
            let request = Request::new().input("x", x).output("y", Place::Device);
            let out = session.execute(request).expect("a run");
            assert_eq!((&*out[0].0, &*out[1].0), ("y", "z"));
            assert!(on_device(&out[0].1) && !on_device(&out[1].1));
            assert_eq!(floats(&out[0].1), floats(&out[1].1));
            x = out[0].1.clone();
        }
        // 2 (2 (2 v + 1) + 1) + 1 = 8 v + 7
        let want: Vec<f32> = (0..12).map(|i| 4.0 * i as f32 + 7.0).collect();
        assert_eq!(floats(&x), want, "{device}");
    }
}

#[test]
fn a_tensor_of_one_device_is_taken_by_a_program_of_another() {
    let mut programs = devices();
    programs.push(DeviceSpec::Reference);
    let made = program(AFFINE, &DeviceSpec::Cpu);
    for device in programs {
        let mut session = Session::new(program(AFFINE, &device));
        let x = made.upload(&matrix(2)).expect("memory");
        let out = session
            .execute(Request::new().input("x", x))
            .expect("a run");
        assert_eq!(floats(&out[0].1)[..3], [1.0, 2.0, 3.0], "{device}");
    }
}

#[test]
fn outputs_are_written_to_memory_that_the_caller_gave() {
    for device in devices() {
        let program = program(AFFINE, &device);
        let mut session = Session::new(program.clone());
        let mut y = program.empty(DType::F32, &[5, 4]).expect("memory");
        for round in 0..3 {
            let mut rows = matrix(5).to_vec::<f32>().expect("floats");
            rows[0] = round as f32;
            let x = Tensor::from_slice(&[5, 4], &rows).expect("20 elements");
            // `z` shares its elements with `y`: it must come out right beside memory given for `y`.
            let request = Request::new().input("x", x).output("y", Place::Into(y));
            let out = session.execute(request).expect("a run");
            let want: Vec<f32> = rows.iter().map(|v| 2.0 * v + 1.0).collect();
            assert_eq!(floats(&out[1].1), want);
            let RunValue::Device(back) = out.into_iter().next().expect("y").1 else {
                panic!("the memory comes back")
            };
            let mut bytes = vec![0u8; back.size()];
            back.copy_to(&mut bytes).expect("a copy");
            assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(&want), "{device}");
            y = back;
        }
        let mut z = program.empty(DType::F32, &[20]).expect("memory");
        z.fill(&Tensor::vector(&[9.0f32; 20])).expect("filled");
        let request = Request::new()
            .input("x", matrix(5))
            .output("z", Place::Into(z));
        let out = session.execute(request).expect("a run");
        assert_eq!(floats(&out[0].1), floats(&out[1].1));
    }
}

#[test]
fn memory_for_an_output_must_fit_and_be_nobody_elses() {
    for device in devices() {
        let program = program(AFFINE, &device);
        let mut session = Session::new(program.clone());
        let mut refused = |place: Place, why: &str| {
            let request = Request::new().input("x", matrix(2)).output("y", place);
            let error = session.execute(request).expect_err("refused").to_string();
            assert!(error.contains(why) && error.contains("'y'"), "{error}");
        };
        let wide = program.empty(DType::F32, &[3, 4]).expect("memory");
        refused(Place::Into(wide), "f32[3, 4]");
        let other = program.empty(DType::I32, &[2, 4]).expect("memory");
        refused(Place::Into(other), "i32[2, 4]");
        let shared = program.empty(DType::F32, &[2, 4]).expect("memory");
        let reader = shared.clone();
        refused(Place::Into(shared), "shared");
        assert_eq!(reader.shape(), [2, 4]);
        let mut read = program.upload(&matrix(2)).expect("memory");
        let host = read.to_host().expect("a tensor");
        if device == DeviceSpec::Cpu {
            // The host tensor shares the memory: writing it would change a value that somebody holds.
            assert!(read.fill(&matrix(2)).is_err());
        }
        assert_eq!(host, matrix(2));
    }
}

#[test]
fn unknown_and_repeated_names_are_refused() {
    let mut session = Session::new(program(AFFINE, &DeviceSpec::Cpu));
    let errors = [
        session.execute(Request::new()),
        session.execute(Request::new().input("w", matrix(1))),
        session.execute(Request::new().input("x", matrix(1)).input("x", matrix(1))),
        session.execute(
            Request::new()
                .input("x", matrix(1))
                .output("q", Place::Device),
        ),
        session.execute(Request::new().input("x", Tensor::vector(&[1.0f32]))),
    ];
    for result in errors {
        let error = result.expect_err("refused");
        assert!(matches!(error, RuntimeError::Input { .. }), "{error}");
    }
}

#[test]
fn state_stays_on_the_device_and_changes_only_on_success() {
    for device in devices() {
        let mut session = Session::new(program(COUNTER, &device));
        let x: Value = Tensor::vector(&[1.0f32, 2.0, 3.0]).into();
        for _ in 0..3 {
            session.run(vec![("x", x.clone())]).expect("a run");
        }
        let bad: Value = Tensor::vector(&[1.0f32]).into();
        assert!(session.run(vec![("x", bad)]).is_err());
        session.cancel_handle().cancel();
        let error = session.run(vec![("x", x.clone())]).expect_err("cancelled");
        assert!(matches!(error, RuntimeError::Cancelled), "{error}");
        session.cancel_handle().reset();
        let mut state = session.state_mut();
        let slot = state.slot("sum").expect("the slot");
        assert!(on_device(slot), "{device}");
        assert_eq!(floats(slot), [3.0, 6.0, 9.0]);
        assert_eq!(state.save().expect("saved").len(), 1);
        state
            .set_slot("sum", Tensor::vector(&[0.0f32; 3]))
            .expect("a slot");
        assert!(state.set_slot("count", Tensor::scalar(1i64)).is_err());
        drop(state);
        let out = session.run(vec![("x", x)]).expect("a run");
        assert_eq!(floats(&out[0].1.clone().into()), [-1.0, -2.0, -3.0]);
    }
}

#[test]
fn submitted_runs_come_in_order_and_can_be_cancelled() {
    let mut session = Session::new(program(COUNTER, &DeviceSpec::Cpu));
    let one = || Request::new().input("x", Tensor::vector(&[1.0f32; 3]));
    let pending: Vec<_> = (0..8)
        .map(|_| session.submit(one()).expect("queued"))
        .collect();
    // A plain run waits for those before it.
    let ninth = session.execute(one()).expect("a run");
    assert_eq!(floats(&ninth[0].1), [-9.0; 3]);
    for (i, run) in pending.into_iter().enumerate() {
        let out = run.wait().expect("a run");
        assert_eq!(floats(&out[0].1), [-(i as f32 + 1.0); 3]);
    }
    assert!(session.submit(Request::new()).is_err());

    let mut slow = Session::new(program(LOOP, &DeviceSpec::Cpu));
    let request = Request::new()
        .input("trips", Tensor::scalar(i64::MAX))
        .input("c", Tensor::vector(&[0.0f32; 2]));
    let mut endless = slow.submit(request).expect("queued");
    assert!(endless.try_take().is_none());
    endless.cancel();
    let error = endless.wait().expect_err("cancelled");
    assert!(matches!(error, RuntimeError::Cancelled), "{error}");
}

#[test]
fn limits_stop_a_run() {
    let mut all = devices();
    all.push(DeviceSpec::Reference);
    for device in all {
        let mut session = Session::new(program(LOOP, &device));
        let mut run = |limits: RunLimits, trips: i64| {
            session.state_mut().limits = limits;
            let c: Value = Tensor::vector(&[0.0f32; 2]).into();
            session.run(vec![("trips", Tensor::scalar(trips).into()), ("c", c)])
        };
        let five = RunLimits {
            trips: Some(5),
            ..RunLimits::default()
        };
        let out = run(five, 5).expect("five are allowed");
        assert_eq!(floats(&out[1].1.clone().into()).len(), 10);
        assert!(
            run(five, 6)
                .expect_err("six")
                .to_string()
                .contains("iterations")
        );
        let short = RunLimits {
            time: Some(Duration::from_millis(30)),
            ..RunLimits::default()
        };
        let error = run(short, i64::MAX).expect_err("endless").to_string();
        assert!(error.contains("time"), "{device}: {error}");
        let tiny = RunLimits {
            memory: Some(1),
            ..RunLimits::default()
        };
        assert!(run(tiny, 2).is_err(), "{device}");
        assert!(run(RunLimits::default(), 2).is_ok());
    }
}

#[test]
fn a_program_over_its_memory_is_refused_before_it_runs() {
    let text = r#"graph @rows {
      %0 = input {name: "x", ty: f32[$n, 4]} : f32[$n, 4] "x"
      %1 = const {value: tensor f32[1, 4] [1.0, 2.0, 3.0, 4.0]}
      %2 = broadcast(%1) {dims: [$n, 4]}
      %3 = map(%0, %2) {f: "add"}
      return "y" = %3
    }"#;
    let compile = |bytes: u64| {
        let options = CompileOptions {
            memory: Some(bytes),
            ..CompileOptions::default()
        };
        Program::compile(graph(text), &Host::new(), &options)
    };
    let program = compile(160).expect("16 bytes of weights");
    assert_eq!(program.weight_bytes(), 16);
    let mut session = Session::new(program.into());
    assert!(session.run(vec![("x", matrix(1).into())]).is_ok());
    let error = session
        .run(vec![("x", matrix(100).into())])
        .expect_err("1600 bytes");
    assert!(matches!(error, RuntimeError::Memory { .. }), "{error}");
    let error = compile(15).err();
    assert!(
        matches!(
            error,
            Some(RuntimeError::Memory {
                need: 16,
                budget: 15
            })
        ),
        "{error:?}"
    );
}

#[test]
fn loops_carry_and_stack_as_on_the_reference() {
    let run = |device: &DeviceSpec, trips: i64| {
        let mut session = Session::new(program(LOOP, device));
        let c: Value = Tensor::vector(&[0.5f32, -1.0]).into();
        session
            .run(vec![("trips", Tensor::scalar(trips).into()), ("c", c)])
            .expect("a run")
    };
    for device in devices() {
        for trips in [0, 1, 7] {
            assert_eq!(
                run(&device, trips),
                run(&DeviceSpec::Reference, trips),
                "{device}"
            );
        }
    }
}

#[test]
fn threads_share_a_program() {
    for device in devices() {
        let program = program(AFFINE, &device);
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let mut session = Session::new(program.clone());
                scope.spawn(move || {
                    for round in 0..10 {
                        let rows = 1 + (thread + round) % 5;
                        let out = session
                            .run(vec![("x", matrix(rows).into())])
                            .expect("a run");
                        let want: Vec<f32> = (0..rows * 4).map(|i| i as f32 + 1.0).collect();
                        assert_eq!(floats(&out[0].1.clone().into()), want);
                    }
                });
            }
        });
    }
}

#[test]
fn sessions_share_named_weights() {
    let text = r#"graph @weighted {
      %0 = input {name: "x", ty: f32[2]} : f32[2] "x"
      %1 = param {name: "w", ty: f32[2]}
      %2 = map(%0, %1) {f: "mul"}
      return "y" = %2
    }"#;
    let mut all = devices();
    all.push(DeviceSpec::Reference);
    for device in all {
        let program = program(text, &device);
        let w = BTreeMap::from([("w".to_string(), Tensor::vector(&[2.0f32, 3.0]))]);
        let weights: Weights = program.weights(w).expect("weights");
        for x in [1.0f32, 5.0] {
            let mut session = Session::with_weights(program.clone(), weights.clone());
            let out = session
                .run(vec![("x", Tensor::vector(&[x, x]).into())])
                .expect("a run");
            assert_eq!(floats(&out[0].1.clone().into()), [2.0 * x, 3.0 * x]);
        }
        let mut without = Session::new(program.clone());
        assert!(
            without
                .run(vec![("x", Tensor::vector(&[1.0f32; 2]).into())])
                .is_err()
        );
        let unknown = BTreeMap::from([("v".to_string(), Tensor::scalar(1.0f32))]);
        assert!(program.weights(unknown).is_err());
    }
}

#[test]
fn the_device_auto_names_what_it_chose() {
    let options = CompileOptions {
        device: DeviceSpec::Auto,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph(AFFINE), &Host::new(), &options).expect("a program");
    assert!(matches!(
        program.device,
        DeviceSpec::Cpu | DeviceSpec::Gpu(_)
    ));
    let mut session = Session::new(program.into());
    let out = session.run(vec![("x", matrix(1).into())]).expect("a run");
    assert_eq!(floats(&out[0].1.clone().into()), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn units_that_add_in_any_order_are_not_deterministic() {
    let options = CompileOptions {
        deterministic: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph(AFFINE), &Host::new(), &options).expect("no such unit");
    let mut session = Session::new(program.into());
    let first = session.run(vec![("x", matrix(50).into())]).expect("a run");
    for _ in 0..5 {
        let again = session.run(vec![("x", matrix(50).into())]).expect("a run");
        assert_eq!(first, again);
    }
}

#[test]
fn recorded_runs_hold_every_step_of_every_region() {
    for device in devices() {
        let program = program(LOOP, &device);
        let mut session = Session::new(program.clone());
        let run = |session: &mut Session| {
            let start: Value = Tensor::vector(&[0.0f32, 1.0]).into();
            let trips: Value = Tensor::from_slice(&[], &[3i64]).expect("a scalar").into();
            session
                .run(vec![("trips", trips), ("c", start)])
                .expect("a run")
        };
        let plain = run(&mut session);
        session.state_mut().recording = Some(Recording::new());
        let recorded = [run(&mut session), run(&mut session)];
        let recording = session.state_mut().recording.take().expect("a recording");
        assert!(recorded.iter().all(|r| *r == plain));
        assert_eq!(recording.runs.len(), 2);
        let plans = program.plans();
        assert_eq!(plans.keys().copied().collect::<Vec<_>>(), [0, 1]);
        for (number, (from, to)) in recording.runs.iter().enumerate() {
            let events = recording.events.iter().filter(|e| e.run == number);
            let (outer, inner): (Vec<&Event>, Vec<&Event>) = events.partition(|e| e.plan == 0);
            assert!(!inner.is_empty() && inner.len() % 3 == 0, "{inner:?}");
            let around = outer
                .iter()
                .find(|o| o.start <= inner[0].start && inner[0].end <= o.end);
            let around = around.expect("a step around the region");
            for event in inner.iter().chain(&outer) {
                assert!(*from <= event.start && event.start <= event.end && event.end <= *to);
            }
            assert!(
                inner
                    .iter()
                    .all(|e| around.start <= e.start && e.end <= around.end)
            );
        }
        let k = recording.bindings[&0].get(&cupola_ir::Sym::new("k"));
        assert_eq!(k, Some(3));
        run(&mut session);
        assert!(session.state_mut().recording.is_none());
    }
}

#[test]
fn weights_may_lie_at_any_address() {
    let values: Vec<f32> = (0..48 * 40).map(|i| (i % 23) as f32 * 0.25 - 2.0).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    // Behind so many bytes of others.
    let at = |shift: usize, shape: &[usize]| {
        let size = shape.iter().product::<usize>() * 4;
        let all = bytes::Bytes::from([vec![0u8; shift], bytes[..size].to_vec()].concat());
        let tensor = Tensor::new(DType::F32, shape.to_vec(), all.slice(all.len() - size..));
        tensor.expect("a tensor")
    };
    let build = |shift: usize| {
        let mut g = Graph::new("weights");
        let ty = cupola_ir::TensorType::new(DType::F32, [3usize, 40]);
        let x = g.input("x", ty).expect("an input");
        let w = g.constant(at(shift, &[40, 48])).expect("a constant");
        let bias = g.constant(at(shift, &[1, 48])).expect("a constant");
        let table = g.constant(at(shift, &[3, 40])).expect("a constant");
        let y = g.matmul(x, w).expect("a product");
        let y = g.binary(cupola_ir::Scalar::Add, y, bias).expect("a sum");
        let y = g.unary(cupola_ir::Scalar::Tanh, y).expect("an activation");
        let sum = g
            .binary(cupola_ir::Scalar::Mul, x, table)
            .expect("a product");
        g.output("y", y);
        g.output("table", sum);
        g
    };
    let run = |shift: usize, level: u8| {
        let options = CompileOptions {
            level,
            ..CompileOptions::default()
        };
        let program = Program::compile(build(shift), &Host::new(), &options).expect("a program");
        let x = Tensor::from_slice(&[3, 40], &values[..120]).expect("numbers");
        let mut session = Session::new(Arc::new(program));
        session.run(vec![("x", x.into())]).expect("a run")
    };
    let want = run(0, 2);
    for shift in [1, 2, 3, 5] {
        assert_eq!(run(shift, 2), want, "{shift}");
        assert_eq!(run(shift, 0).len(), want.len(), "{shift}");
    }
}
