//! The device on its own: memory, transfers, compilation, submission, errors.

mod common;

use cupola_wgpu::device::pipeline::Trust;
use cupola_wgpu::device::{
    Access, Command, Dispatch, KernelSource, ParamSpace, STORAGE_ALIGNMENT, fold_groups,
};
use cupola_wgpu::{AdapterList, DeviceOptions, Error, GpuDevice, Tier};

/// `target[i] = source[i] * factor + offset` for `i < len`, groups numbered over all axes.
fn scale(params_in: ParamSpace) -> KernelSource {
    let params = match params_in {
        ParamSpace::Uniform => "@group(1) @binding(0) var<uniform> params: Params;",
        ParamSpace::Immediate => "var<immediate> params: Params;",
    };
    KernelSource {
        label: "scale".to_owned(),
        text: format!(
            "struct Params {{ len: u32, factor: u32, offset: u32 }}
            @group(0) @binding(0) var<storage, read> source: array<u32>;
            @group(0) @binding(1) var<storage, read_write> target_: array<u32>;
            {params}
            @compute @workgroup_size(64)
            fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) local: u32) {{
                let i = (group.x + groups.x * (group.y + groups.y * group.z)) * 64u + local;
                if i < params.len {{ target_[i] = source[i] * params.factor + params.offset; }}
            }}"
        ),
        bindings: vec![Access::Read, Access::ReadWrite],
        params_len: 3,
        params_in,
        trust: Trust::Generated,
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
        .collect()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn read(device: &GpuDevice, buffer: &cupola_wgpu::GpuBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.size() as usize];
    device.download(buffer, 0, &mut bytes).expect("downloads");
    bytes
}

#[test]
fn adapters_are_listed_with_facts() {
    let list = AdapterList::enumerate();
    for (index, adapter) in list.adapters().iter().enumerate() {
        let facts = adapter.facts();
        assert_eq!(facts.index, index);
        assert!(!facts.name.is_empty());
        assert!(
            facts.refusal.is_some() || facts.limits.binding_size >= 128 << 20,
            "{facts:?}"
        );
        assert!(
            facts
                .features
                .subgroups
                .is_none_or(|(low, high)| 0 < low && low <= high)
        );
    }
    let count = list.adapters().len();
    assert_eq!(
        list.get(count).err(),
        Some(Error::NoAdapter {
            index: count,
            count
        })
    );
}

#[test]
fn devices_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<GpuDevice>();
    shared::<AdapterList>();
    shared::<cupola_wgpu::GpuBuffer>();
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    std::thread::scope(|scope| {
        for factor in 1..=4u32 {
            let device = &device;
            scope.spawn(move || {
                let kernel = scale(ParamSpace::Uniform);
                for round in 0..8 {
                    let out = common::run(
                        device,
                        &kernel,
                        &[100, factor, round],
                        [2, 1, 1],
                        &[&bytes(&(0..100).collect::<Vec<_>>()), &[0; 400]],
                    );
                    let want: Vec<u32> = (0..100).map(|i| i * factor + round).collect();
                    assert_eq!(words(&out[1]), want);
                }
                // One thread's error is not another's.
                let mut broken = kernel.clone();
                broken.text.push_str(&format!("fn broken{factor}("));
                assert!(matches!(
                    device.pipeline(&broken),
                    Err(Error::Shader { .. })
                ));
            });
        }
    });
    assert_eq!(device.pipelines_len(), 1);
}

#[test]
fn parameters_reach_kernels_both_ways() {
    for device in common::devices() {
        for space in common::param_spaces(&device) {
            let input: Vec<u32> = (0..1000).collect();
            let out = common::run(
                &device,
                &scale(space),
                &[1000, 3, 7],
                [4, 2, 2],
                &[&bytes(&input), &vec![0; 4000]],
            );
            assert_eq!(
                words(&out[1]),
                input.iter().map(|i| i * 3 + 7).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn bytes_survive_transfers_of_every_length() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    for len in [0usize, 1, 2, 3, 4, 5, 7, 255, 256, 1027] {
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + len) as u8).collect();
        let buffer = device.allocate_with(&data).expect("allocates");
        assert_eq!(buffer.size(), len as u64);
        assert_eq!(read(&device, &buffer), data);
        let copy = device.allocate(len as u64).expect("allocates");
        let step = Command::Copy {
            source: &buffer,
            source_offset: 0,
            target: &copy,
            target_offset: 0,
            size: len as u64,
        };
        device.submit(&[step]).expect("submits");
        assert_eq!(read(&device, &copy), data);
        let zero = Command::Zero {
            buffer: &copy,
            offset: 0,
            size: len as u64,
        };
        let submission = device.submit(&[zero]).expect("submits");
        device.wait(&submission).expect("waits");
        assert_eq!(read(&device, &copy), vec![0; len]);
    }
}

#[test]
fn large_transfers_go_in_pieces() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    let len = (64 << 20) + 12_347;
    let data: Vec<u8> = (0..len).map(|i| (i ^ (i >> 11)) as u8).collect();
    let buffer = device.allocate_with(&data).expect("allocates");
    assert!(read(&device, &buffer) == data);
    let mut tail = vec![0; 12_347];
    device
        .download(&buffer, 64 << 20, &mut tail)
        .expect("downloads");
    assert!(tail == data[64 << 20..]);
}

#[test]
fn uploads_to_many_buffers_go_in_portions() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    let len = (12 << 20) + 6;
    let data = |number: u8| -> Vec<u8> { (0..len).map(|i| (i >> 9) as u8 ^ number).collect() };
    let each = (0..9).map(|number| device.allocate_with(&data(number)).expect("allocates"));
    let buffers: Vec<_> = each.collect();
    for (number, buffer) in (0..).zip(&buffers) {
        let mut tail = vec![0; 4096 + 6];
        let at = len - tail.len();
        device
            .download(buffer, at as u64, &mut tail)
            .expect("downloads");
        assert!(tail == data(number)[at..], "buffer {number}");
    }
}

#[test]
fn steps_of_a_submission_run_in_order() {
    let Some(device) = common::device(Tier::Full) else {
        return;
    };
    let pipeline = device
        .pipeline(&scale(ParamSpace::Uniform))
        .expect("compiles");
    let first = device.allocate_with(&bytes(&[1; 64])).expect("allocates");
    let second = device.allocate(512).expect("allocates");
    let there = device
        .bind(
            &pipeline,
            &[first.whole(), second.range(0, 256).expect("fits")],
        )
        .expect("binds");
    let back = device
        .bind(
            &pipeline,
            &[second.range(256, 256).expect("fits"), first.whole()],
        )
        .expect("binds");
    let mut commands = Vec::new();
    for step in 0..5u32 {
        // x -> 2 x + step, moved to the upper half of `second` and back into `first`.
        commands.push(Command::Dispatch(Dispatch {
            pipeline: &pipeline,
            bindings: &there,
            params: if step == 0 { &[64, 2, 0] } else { &[64, 2, 1] },
            groups: [1, 1, 1],
        }));
        commands.push(Command::Copy {
            source: &second,
            source_offset: 0,
            target: &second,
            target_offset: 256,
            size: 256,
        });
        commands.push(Command::Dispatch(Dispatch {
            pipeline: &pipeline,
            bindings: &back,
            params: &[64, 1, 10],
            groups: [1, 1, 1],
        }));
    }
    device.submit(&commands).expect("submits");
    let want = (0..5).fold(1u32, |x, step| 2 * x + u32::from(step > 0) + 10);
    assert_eq!(words(&read(&device, &first)), [want; 64]);
    if device.facts().features.timestamps != cupola_wgpu::adapter::Timestamps::Absent {
        let times = device.run_timed(&commands).expect("runs");
        assert_eq!(times.len(), 10);
        assert!(times.iter().any(|time| !time.is_zero()), "{times:?}");
    }
}

#[test]
fn many_dispatches_fit_one_submission() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    let pipeline = device
        .pipeline(&scale(ParamSpace::Uniform))
        .expect("compiles");
    let even = device.allocate(4).expect("allocates");
    let odd = device.allocate(4).expect("allocates");
    let there = device
        .bind(&pipeline, &[even.whole(), odd.whole()])
        .expect("binds");
    let back = device
        .bind(&pipeline, &[odd.whole(), even.whole()])
        .expect("binds");
    let params: Vec<[u32; 3]> = (0..1000).map(|i| [1, 1, i]).collect();
    let commands: Vec<_> = params
        .iter()
        .map(|params| {
            let bindings = if params[2].is_multiple_of(2) {
                &there
            } else {
                &back
            };
            Command::Dispatch(Dispatch {
                pipeline: &pipeline,
                bindings,
                params,
                groups: [1, 1, 1],
            })
        })
        .collect();
    device.submit(&commands).expect("submits");
    assert_eq!(words(&read(&device, &even)), [999 * 1000 / 2]);
}

#[test]
fn bad_kernels_and_commands_are_errors() {
    let Some(device) = common::device(Tier::Base) else {
        return;
    };
    let kernel = scale(ParamSpace::Uniform);
    let mut broken = kernel.clone();
    broken.text = kernel.text.replace("target_[i] =", "target_[i] +");
    let Err(Error::Shader { label, message }) = device.pipeline(&broken) else {
        panic!("compiled")
    };
    assert_eq!(label, "scale");
    assert!(!message.contains('\n') && !message.is_empty(), "{message}");
    // The text is fine, the declared interface is not.
    let mut misdeclared = kernel.clone();
    misdeclared.bindings[1] = Access::Read;
    assert!(matches!(
        device.pipeline(&misdeclared),
        Err(Error::Shader { .. })
    ));
    let mut many = kernel.clone();
    many.bindings = vec![Access::Read; 9];
    assert!(matches!(
        device.pipeline(&many),
        Err(Error::Limit { allowed: 8, .. })
    ));
    assert!(matches!(
        device.pipeline(&scale(ParamSpace::Immediate)),
        Err(Error::Limit { .. })
    ));

    let pipeline = device.pipeline(&kernel).expect("compiles");
    let buffer = device.allocate(1024).expect("allocates");
    let half = |offset| buffer.range(offset, 512).expect("fits");
    assert!(matches!(
        device.bind(&pipeline, &[buffer.whole()]),
        Err(Error::Range { .. })
    ));
    assert!(matches!(
        device.bind(&pipeline, &[half(0), half(512)]),
        Err(Error::Range { .. })
    ));
    assert!(buffer.range(4, 8).is_err());
    assert!(buffer.range(STORAGE_ALIGNMENT, 1024).is_err());
    assert!(buffer.range(u64::MAX - 255, 256).is_err());
    assert!(buffer.range(1024, 0).is_ok());
    assert!(device.upload(&buffer, 1022, &[0; 2]).is_err());
    assert!(device.upload(&buffer, 1024, &[0; 1]).is_err());
    assert!(device.download(&buffer, u64::MAX - 3, &mut [0; 8]).is_err());

    let other = device.allocate(512).expect("allocates");
    let bindings = device
        .bind(&pipeline, &[half(0), other.whole()])
        .expect("binds");
    let submit = |params: &[u32], groups| {
        device.submit(&[Command::Dispatch(Dispatch {
            pipeline: &pipeline,
            bindings: &bindings,
            params,
            groups,
        })])
    };
    assert!(matches!(
        submit(&[1, 2], [1, 1, 1]),
        Err(Error::Range { .. })
    ));
    assert!(matches!(
        submit(&[1, 2, 3], [65_536, 1, 1]),
        Err(Error::Limit { .. })
    ));
    assert!(submit(&[1, 2, 3], [0, 1, 1]).is_ok());
    let overlapping = Command::Copy {
        source: &buffer,
        source_offset: 0,
        target: &buffer,
        target_offset: 4,
        size: 8,
    };
    assert!(matches!(
        device.submit(&[overlapping]),
        Err(Error::Range { .. })
    ));
    // Nothing above damaged the device.
    assert!(submit(&[1, 2, 3], [1, 1, 1]).is_ok());
    assert_eq!(device.check(), Ok(()));
}

#[test]
fn memory_is_counted_and_bounded() {
    let options = DeviceOptions {
        tier: Tier::Base,
        memory_budget: Some(1 << 20),
        ..Default::default()
    };
    let Some(device) = common::open(&options) else {
        return;
    };
    let large = device.allocate(1 << 19).expect("allocates");
    let small = device.allocate(13).expect("allocates");
    assert_eq!(device.memory().live, (1 << 19) + 16);
    let refused = device.allocate(1 << 19).err();
    assert_eq!(
        refused,
        Some(Error::OutOfMemory {
            requested: 1 << 19,
            live: (1 << 19) + 16,
            budget: Some(1 << 20)
        })
    );
    drop(large);
    assert_eq!(device.memory().live, 16);
    assert_eq!(device.memory().peak, (1 << 19) + 16);
    assert!(device.allocate(1 << 19).is_ok());
    drop(small);
    assert_eq!(device.memory().buffers, 0);
    assert!(matches!(
        device.allocate(u64::MAX),
        Err(Error::Limit { .. })
    ));
    assert!(matches!(device.allocate(1 << 40), Err(Error::Limit { .. })));
}

#[test]
fn the_experimental_tier_opens_or_falls_back() {
    let options = DeviceOptions {
        tier: Tier::Experimental,
        ..Default::default()
    };
    let Some(device) = common::open(&options) else {
        return;
    };
    let shapes = &device.features().cooperative;
    assert!(shapes.iter().all(|shape| shape.in_wgsl()));
    assert!(shapes.len() <= device.facts().features.cooperative.len());
    let out = common::run(
        &device,
        &scale(ParamSpace::Uniform),
        &[1, 5, 6],
        [1, 1, 1],
        &[&bytes(&[4]), &[0; 4]],
    );
    assert_eq!(words(&out[1]), [26]);
}

#[test]
fn groups_fold_over_the_axes() {
    for (total, per_axis) in [
        (0, 65_535),
        (1, 65_535),
        (65_535, 65_535),
        (65_536, 65_535),
        (1 << 31, 65_535),
        (27, 3),
        (25, 3),
    ] {
        let [x, y, z] = fold_groups(total, per_axis).expect("fits");
        assert!(x <= per_axis && y <= per_axis && z <= per_axis);
        let product = u64::from(x) * u64::from(y) * u64::from(z);
        assert!(
            product >= total && product <= total + total / 64 + 3 * u64::from(per_axis),
            "{total}: {x} {y} {z}"
        );
    }
    assert!(fold_groups(28, 3).is_err());
    assert!(fold_groups(1 << 33, 65_535).is_err());
}
