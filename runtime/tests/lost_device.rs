//! Drivers that fail under a session: one clear error, the state as it was, and a device that can be opened again.

use cupola_ir::{DType, Dim, Graph, Tensor, TensorType, Value};
use cupola_runtime::{
    BackendError, CompileOptions, DeviceSpec, Host, HostOptions, Injected, Mishap, Program,
    RuntimeError, Session,
};
use std::sync::Arc;

fn gpu_is_required() -> bool {
    let required = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_some();
    if !required {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
    }
    required
}

/// `y = 2 x w`, with a weight.
fn graph() -> Graph {
    let mut g = Graph::new("weighted");
    let x = g.input(
        "x",
        TensorType::new(DType::F32, [Dim::sym("n"), Dim::Const(3)]),
    );
    let x = x.expect("an input");
    let w = Tensor::from_slice(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).expect("a matrix");
    let w = g.constant(w).expect("a weight");
    let product = g.matmul(x, w).expect("a product");
    let y = g.scale(product, 2.0).expect("scaled");
    g.output("y", y);
    g
}

fn host(inject: Option<Injected>) -> Host {
    Host::with(HostOptions {
        inject,
        ..HostOptions::default()
    })
}

fn session(host: &Host) -> Result<Session, RuntimeError> {
    let options = CompileOptions {
        device: DeviceSpec::Gpu(0),
        threads: 1,
        ..CompileOptions::default()
    };
    Ok(Session::new(Arc::new(Program::compile(
        graph(),
        host,
        &options,
    )?)))
}

fn run(session: &mut Session) -> Result<(), RuntimeError> {
    let x = Tensor::from_slice(&[2, 3], &[1.0f32, 0.0, 0.0, 0.0, 1.0, 1.0]).expect("a matrix");
    let want = Tensor::from_slice(&[2, 2], &[2.0f32, 4.0, 16.0, 20.0]).expect("a matrix");
    let out = session.run(vec![("x", x.into())])?;
    assert_eq!(out[0].1, Value::from(want));
    Ok(())
}

#[test]
fn every_failure_is_one_error_and_the_session_lives() {
    if !gpu_is_required() {
        return;
    }
    for what in [Mishap::Allocation, Mishap::Pipeline, Mishap::Map] {
        const MOST: u64 = 24;
        let mut failures = 0;
        for at in 1..=MOST {
            let host = host(Some(Injected { what, at }));
            let mut errors = vec![];
            match session(&host) {
                // Whatever failed in a run, those after it are whole.
                Ok(mut session) => errors.extend((0..4).filter_map(|_| run(&mut session).err())),
                Err(error) => errors.push(error),
            }
            assert!(errors.len() <= 1, "{errors:?}");
            failures += errors.len() as u64;
            for error in errors {
                assert!(matches!(error, RuntimeError::Backend(_)), "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
        assert!((1..MOST).contains(&failures), "{what:?}: {failures}");
    }
}

#[test]
fn after_a_loss_the_host_opens_the_device_anew() {
    if !gpu_is_required() {
        return;
    }
    // The first submission of a second run: what came before, and the other host, are none of its business.
    let counted = host(None);
    let mut other = session(&counted).expect("a session");
    run(&mut other).expect("a run");
    let mut lost = None;
    for at in 1..40 {
        let host = host(Some(Injected {
            what: Mishap::Submission,
            at,
        }));
        let Ok(mut session) = session(&host) else {
            continue;
        };
        if run(&mut session).is_ok() && run(&mut session).is_err() {
            lost = Some((host, session));
            break;
        }
    }
    let (host, mut old) = lost.expect("a loss in the second run");
    assert!(old.program().is_lost());
    let Err(RuntimeError::Backend(BackendError::Device { what, .. })) = run(&mut old) else {
        panic!("a lost device cannot run")
    };
    assert!(what.contains("lost"), "{what}");
    let mut new = session(&host).expect("opened anew");
    assert!(!new.program().is_lost());
    run(&mut new).expect("a run on the device opened anew");
    run(&mut other).expect("a run on a device that was not lost");
}

#[test]
fn sessions_of_several_devices_run_at_once() {
    if !gpu_is_required() {
        return;
    }
    let hosts = [host(None), host(None)];
    let sessions = hosts.iter().flat_map(|h| [session(h), session(h)]);
    std::thread::scope(|scope| {
        for session in sessions {
            let mut session = session.expect("a session");
            scope.spawn(move || (0..20).for_each(|_| run(&mut session).expect("a run")));
        }
    });
}
