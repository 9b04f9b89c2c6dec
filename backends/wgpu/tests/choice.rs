//! The cost model: what it predicts grows with the work, and it takes the forms that suit a device. No adapter is needed.

use cupola_shaders::element::Element;
use cupola_shaders::matmul::MatmulForm;
use cupola_shaders::shader::Epilogue;
use cupola_wgpu::adapter::{AdapterKind, CoopScalar, CoopShape};
use cupola_wgpu::choice::{Arithmetic, Choices, Work};
use cupola_wgpu::library::matmul::{BatchAxis, Matmul, Matrix, Plan};
use cupola_wgpu::library::plans::{Entry, Problem, contest, fastest};
use cupola_wgpu::{DeviceModel, Rates};
use std::sync::Arc;

/// A device with the features of its kind.
fn device(
    kind: AdapterKind,
    vendor: &str,
    subgroups: Option<(u32, u32)>,
    matrices: Option<u32>,
) -> DeviceModel {
    let mut device = DeviceModel {
        rates: Rates::typical(kind, vendor),
        ..DeviceModel::default()
    };
    device.limits.workgroup_memory_size = 32 << 10;
    device.limits.workgroup_threads = 1024;
    device.limits.binding_size = 2 << 30;
    device.features.f16 = true;
    device.features.subgroups = subgroups;
    device.features.cooperative = (matrices.iter())
        .map(|&side| CoopShape {
            rows: side,
            cols: side,
            inner: side,
            operand: CoopScalar::F16,
            result: CoopScalar::F32,
        })
        .collect();
    device
}

fn nvidia() -> DeviceModel {
    device(AdapterKind::Discrete, "NVIDIA", Some((32, 32)), Some(16))
}

fn apple() -> DeviceModel {
    device(AdapterKind::Integrated, "Apple", Some((32, 32)), Some(8))
}

fn intel() -> DeviceModel {
    device(AdapterKind::Discrete, "Intel", Some((8, 32)), None)
}

fn software() -> DeviceModel {
    device(AdapterKind::Software, "Mesa", Some((8, 8)), None)
}

fn all() -> [(&'static str, DeviceModel); 5] {
    [
        ("NVIDIA", nvidia()),
        ("Apple", apple()),
        ("Intel", intel()),
        ("software", software()),
        ("base", DeviceModel::default()),
    ]
}

/// A product by weights that lie along the inner axis.
fn product(batches: u64, [rows, inner, cols]: [u64; 3], element: Element) -> Matmul {
    let matrix = |row_stride: u64, col_stride: u64| Matrix {
        element,
        offset: 0,
        row_stride: row_stride as i64,
        col_stride: col_stride as i64,
    };
    Matmul {
        rows,
        cols,
        inner,
        inner_axes: vec![],
        batch: vec![BatchAxis {
            len: batches,
            lhs: (rows * inner) as i64,
            rhs: (cols * inner) as i64,
            out: (rows * cols) as i64,
        }],
        lhs: matrix(inner, 1),
        rhs: matrix(1, inner),
        out: matrix(cols, 1),
        readings: Default::default(),
        narrow: true,
        epilogue: Epilogue::default(),
    }
}

fn work() -> Work {
    Work {
        bytes: 1e6,
        cached: 1e6,
        operations: 1e8,
        arithmetic: Arithmetic::F32,
        share: 0.5,
        groups: 256.0,
        threads: 256.0,
    }
}

#[test]
fn more_work_never_takes_less_time() {
    for (name, device) in all() {
        let grown: [(&str, fn(Work, f64) -> Work); 3] = [
            ("bytes", |w, by| Work {
                bytes: w.bytes * by,
                ..w
            }),
            ("cached bytes", |w, by| Work {
                cached: w.cached * by,
                ..w
            }),
            ("operations", |w, by| Work {
                operations: w.operations * by,
                ..w
            }),
        ];
        for (what, grow) in grown {
            for groups in [1.0, 3.0, 64.0, 1000.0] {
                let base = Work { groups, ..work() };
                let times: Vec<f64> = (0..12)
                    .map(|n| device.seconds(&grow(base, f64::from(1 << n))))
                    .collect();
                assert!(
                    times.is_sorted(),
                    "{name}: time falls with {what}: {times:?}"
                );
                assert!(times[11] > 2.0 * times[0], "{name}: {what} count");
                assert!(times[0] > device.rates.dispatch);
            }
        }
    }
}

#[test]
fn faster_devices_are_predicted_faster() {
    let slow = nvidia();
    for factor in [1.5, 2.0, 10.0] {
        let mut fast = slow.clone();
        fast.rates.copy *= factor;
        fast.rates.f32 *= factor;
        assert!(fast.seconds(&work()) < slow.seconds(&work()));
    }
    let matrix = Work {
        arithmetic: Arithmetic::Matrix,
        bytes: 0.0,
        cached: 0.0,
        ..work()
    };
    assert!(
        slow.seconds(&matrix)
            < slow.seconds(&Work {
                arithmetic: Arithmetic::F32,
                ..matrix
            })
    );
    // One workgroup keeps one core busy, the rest wait.
    let one = Work {
        groups: 1.0,
        ..work()
    };
    assert!(slow.seconds(&one) > 20.0 * slow.seconds(&work()));
}

#[test]
fn larger_products_take_longer() {
    for (name, device) in all() {
        let seconds = |lens: [u64; 3]| {
            let problem = product(1, lens, Element::F32);
            let plan = fastest(&problem, &device).expect("a plan");
            problem.seconds(&plan, &device)
        };
        for grown in 0..3 {
            let mut last = 0.0;
            for len in [64u64, 256, 1024, 4096] {
                let mut lens = [512; 3];
                lens[grown] = len;
                let now = seconds(lens);
                assert!(
                    now >= last,
                    "{name}: {lens:?} takes {now}, less than {last}"
                );
                last = now;
            }
        }
    }
}

/// What a plan is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// For a few rows.
    Few,
    /// Tiles up to 64 by 64.
    Small,
    /// Tiles of 128 on a side at least.
    Large,
    /// On matrix units.
    Matrices,
}

fn form(plan: &Plan) -> Form {
    match plan.shader.form {
        MatmulForm::Tiled(tile) if tile.rows.max(tile.cols) >= 128 => Form::Large,
        MatmulForm::Tiled(_) => Form::Small,
        MatmulForm::Cooperative(_) => Form::Matrices,
        MatmulForm::Skinny(_) => Form::Few,
        MatmulForm::Direct(_) => Form::Small,
    }
}

#[test]
fn products_get_the_form_that_suits_them() {
    use Form::{Few, Large, Matrices, Small};
    // As measured, not as typical of its maker.
    let mut datacenter = nvidia();
    datacenter.rates = Rates {
        copy: 4.2e12,
        f32: 60e12,
        f16: 60e12,
        matrix: 400e12,
        dispatch: 3e-6,
        cores: 132,
        ..datacenter.rates
    };
    let expected = |device: &DeviceModel, element, cases: &[([u64; 3], Form, bool)]| {
        for &(lens, want, divided) in cases {
            let plan = fastest(&product(1, lens, element), device).expect("a plan");
            let what = format!("{element:?} {lens:?} at {:?}", device.rates);
            assert_eq!(form(&plan), want, "{what}");
            assert_eq!(plan.splits > 1, divided, "{what}: {} parts", plan.splits);
        }
    };
    expected(
        &datacenter,
        Element::F16,
        &[
            ([8192, 8192, 8192], Matrices, false),
            ([4096, 4096, 4096], Matrices, false),
            ([2048, 4096, 4096], Matrices, false),
        ],
    );
    expected(
        &datacenter,
        Element::F32,
        &[
            ([1, 4096, 4096], Few, false),
            ([4096, 4096, 4096], Large, false),
            ([64, 65536, 64], Small, true),
        ],
    );
    for device in [nvidia(), apple(), intel(), DeviceModel::default()] {
        expected(
            &device,
            Element::F32,
            &[
                ([1, 4096, 4096], Few, false),
                ([4, 2048, 8192], Few, false),
                ([4096, 4096, 4096], Large, false),
                ([64, 65536, 64], Small, true),
            ],
        );
    }
    expected(
        &nvidia(),
        Element::F16,
        &[([4096, 4096, 4096], Matrices, false)],
    );
    // Two cores gain nothing from more workgroups.
    expected(
        &software(),
        Element::F32,
        &[
            ([1, 4096, 4096], Few, false),
            ([512, 512, 512], Large, false),
        ],
    );
}

#[test]
fn what_was_timed_decides() {
    let problem = product(1, [512, 512, 512], Element::F32);
    let mut device = nvidia();
    let entry = Entry {
        within: 1e9,
        most: usize::MAX,
    };
    let contest = contest(&problem, &device, entry).expect("plans");
    assert!(contest.candidates.len() > 5);
    assert!(
        contest
            .candidates
            .is_sorted_by(|a, b| a.seconds <= b.seconds)
    );
    let predicted = fastest(&problem, &device).expect("a plan");
    assert_eq!(problem.name(&predicted), contest.candidates[0].name);
    let slowest = contest.candidates.last().expect("candidates");
    let decide = |device: &mut DeviceModel, plan: &str| {
        let mut choices = Choices::default();
        choices.set(&contest.class, plan);
        device.choices = Arc::new(choices);
    };
    decide(&mut device, &slowest.name);
    assert_eq!(problem.plan(&device), Ok(slowest.program.clone()));
    // A neighbour of the same class, but no other problem.
    let neighbour = product(1, [510, 512, 512], Element::F32);
    let plan = fastest(&neighbour, &device).expect("a plan");
    assert_eq!(neighbour.name(&plan), slowest.name);
    let other = product(1, [512, 512, 520], Element::F32);
    let plan = fastest(&other, &device).expect("a plan");
    assert_ne!(other.name(&plan), slowest.name);
    // What this release does not know is as if it were not there.
    decide(&mut device, "a plan of another release");
    assert_eq!(fastest(&problem, &device), Ok(predicted));
    // Close ones only, where that is asked for.
    let close = Entry {
        within: 1.2,
        most: 3,
    };
    let few = cupola_wgpu::library::plans::contest(&problem, &device, close).expect("plans");
    assert!((1..=3).contains(&few.candidates.len()));
    let [first, .., last] = &few.candidates[..] else {
        return;
    };
    assert!(last.seconds <= 1.2 * first.seconds);
}

#[test]
fn names_tell_plans_apart() {
    for (name, device) in all() {
        for lens in [
            [1, 4096, 4096],
            [3, 4096, 64],
            [512, 512, 512],
            [64, 65536, 64],
        ] {
            for element in [Element::F32, Element::F16] {
                let problem = product(2, lens, element);
                let plans = Problem::plans(&problem, &device).expect("plans");
                let mut names: Vec<String> = plans.iter().map(|p| problem.name(p)).collect();
                let len = names.len();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), len, "{name} {lens:?}: {names:?}");
                assert!(names.iter().all(|name| !name.contains('\n')));
            }
        }
    }
}
