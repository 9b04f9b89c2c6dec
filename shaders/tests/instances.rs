//! Every instance of every template is valid WGSL and translates to SPIR-V, MSL and HLSL. No GPU is needed.

use cupola_shaders::attention::{AttentionForm, AttentionShader, Mask, ValueCols};
use cupola_shaders::check;
use cupola_shaders::convolution::{ConvolutionForm, ConvolutionShader, Direction, WeightLayout};
use cupola_shaders::element::{Access, Binding, Element, Stores, Width};
use cupola_shaders::matmul::{
    Accumulator, InnerAxes, MatmulForm, MatmulShader, Orientation, SkinnyRows,
};
use cupola_shaders::scatter::{self, Outside};
use cupola_shaders::shader::{Epilogue, ParamSpace, Shader};
use cupola_shaders::sort::{BlockSize, KeyKind, SortForm, SortShader};
use cupola_shaders::tile::{FastAxis, Staging, Tile};

/// Checks one kernel with its parameters in uniform space.
fn check(shader: &Shader) {
    if let Err(error) = check::check(shader, ParamSpace::Uniform) {
        let text = shader.wgsl(ParamSpace::Uniform);
        panic!("{}: {error}\n{}", shader.label, numbered(&text));
    }
}

fn numbered(text: &str) -> String {
    text.lines()
        .enumerate()
        .map(|(n, line)| format!("{:4} {line}\n", n + 1))
        .collect()
}

/// Adds a bias by column and scales by a parameter.
fn bias() -> Epilogue {
    Epilogue {
        code: "fn epilogue(value: f32, index: u32, row: u32, col: u32, batch: u32) {
            store_out(index, value * bitcast<f32>(params.scale) + load_bias(col));
        }\n"
        .to_owned(),
        bindings: vec![Binding::read("bias", Element::F16)],
        params: vec!["scale".to_owned()],
    }
}

/// A kernel that copies with the given bindings.
fn copy(label: String, source: Binding, sink: Binding, body: &str) -> Shader {
    Shader {
        label,
        bindings: vec![source, sink],
        params: vec![],
        extensions: vec![],
        helpers: vec![],
        body: format!(
            "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ {body} }}"
        ),
    }
}

#[test]
fn accessors_of_every_element() {
    for element in Element::ALL {
        let read = Binding::read("source", element);
        let write = |stores| Binding::write_as("sink", element, stores);
        let store = "store_sink(id.x, load_source(id.x));";
        let label = || format!("{element:?}");
        check(&copy(label(), read.clone(), write(Stores::Elements), store));
        let shared = Binding {
            access: Access::ReadShared,
            ..read.clone()
        };
        check(&copy(label(), shared, write(Stores::Elements), store));
        let sums = "add_sink(id.x, load_source(id.x)); store_sink(id.x, load_sink(id.x));";
        // 64-bit floats are not added by many threads.
        if element != Element::F64 {
            check(&copy(label(), read.clone(), write(Stores::Sums), sums));
        }
        if element.bits() < 32 {
            let words = "store_word_sink(id.x, bits_sink(load_source(id.x)));";
            check(&copy(label(), read, write(Stores::Words), words));
        }
        if element.has_fours() {
            let fours = Binding::read_as("source", element, Width::Four);
            let body =
                "store_sink(id.x, load4_source(id.x * 4u).y); store_sink(0u, load_source(id.x));";
            check(&copy(label(), fours.clone(), write(Stores::Elements), body));
            let wide = Binding {
                width: Width::Four,
                ..write(Stores::Elements)
            };
            let body = "store4_sink(id.x * 4u, load4_source(id.x * 4u));";
            check(&copy(label(), fours, wide, body));
        }
    }
}

/// Floats as floats; integers signed unless both are unsigned.
fn accumulator(lhs: Element, rhs: Element) -> Accumulator {
    match (lhs.value_type(), rhs.value_type()) {
        ("u32", "u32") => Accumulator::U32,
        ("f32", _) | (_, "f32") => Accumulator::F32,
        _ => Accumulator::I32,
    }
}

#[test]
fn scatter() {
    check(&scatter::clear());
    for outside in [Outside::Fault, Outside::Nearest, Outside::Skip] {
        for indices in 1..=scatter::SCATTER_INDICES {
            check(&scatter::link(indices, outside));
        }
    }
    for element in Element::ALL {
        check(&scatter::apply(element, None, vec![]));
        let held = element.value_type();
        let combine =
            format!("fn combine(old: {held}, update: {held}) -> {held} {{ return update; }}");
        check(&scatter::apply(element, Some(&combine), vec![]));
    }
}

#[test]
fn matmul() {
    let floats = [Element::F32, Element::F16, Element::Bf16];
    let plain = |lhs, rhs, out, lhs_staging, rhs_staging, form| MatmulShader {
        lhs,
        rhs,
        out,
        accumulator: accumulator(lhs, rhs),
        inner: InnerAxes::One,
        lhs_staging,
        rhs_staging,
        form,
        epilogue: Epilogue::default(),
        orientation: Orientation::Normal,
    };
    for lhs_staging in Staging::ALL {
        for rhs_staging in Staging::ALL {
            for tile in Tile::ALL {
                let form = MatmulForm::Tiled(tile);
                check(
                    &plain(
                        Element::F32,
                        Element::F32,
                        Element::F32,
                        lhs_staging,
                        rhs_staging,
                        form,
                    )
                    .shader(),
                );
            }
            let form = MatmulForm::Tiled(Tile::SMALL);
            for lhs in floats {
                for rhs in floats {
                    check(&plain(lhs, rhs, lhs, lhs_staging, rhs_staging, form).shader());
                }
            }
            if (lhs_staging.width, rhs_staging.width) == (Width::One, Width::One) {
                let shader = plain(
                    Element::F16,
                    Element::F32,
                    Element::F32,
                    lhs_staging,
                    rhs_staging,
                    form,
                );
                check(
                    &MatmulShader {
                        inner: InnerAxes::Many,
                        ..shader
                    }
                    .shader(),
                );
            }
            for lhs in [Element::I8, Element::U8, Element::I32, Element::I16] {
                check(
                    &plain(
                        lhs,
                        Element::I8,
                        Element::I32,
                        lhs_staging,
                        rhs_staging,
                        form,
                    )
                    .shader(),
                );
            }
            check(
                &plain(
                    Element::U8,
                    Element::U32,
                    Element::U32,
                    lhs_staging,
                    rhs_staging,
                    form,
                )
                .shader(),
            );
        }
    }
    let inner = |width| Staging {
        fast: FastAxis::Inner,
        width,
    };
    for rows in SkinnyRows::ALL {
        let form = MatmulForm::Skinny(rows);
        for rhs in floats {
            for rhs_staging in Staging::ALL {
                let lhs = inner(Width::One);
                check(&plain(Element::F32, rhs, Element::F16, lhs, rhs_staging, form).shader());
            }
            let four = inner(Width::Four);
            check(&plain(Element::F32, rhs, Element::F32, four, four, form).shader());
        }
        check(
            &plain(
                Element::I8,
                Element::I8,
                Element::I32,
                inner(Width::One),
                inner(Width::Four),
                form,
            )
            .shader(),
        );
    }
    for form in [
        MatmulForm::Tiled(Tile::MEDIUM),
        MatmulForm::Skinny(SkinnyRows::Two),
    ] {
        for orientation in [Orientation::Normal, Orientation::Swapped] {
            let one = inner(Width::One);
            let shader = plain(Element::F32, Element::F32, Element::F32, one, one, form);
            check(
                &MatmulShader {
                    epilogue: bias(),
                    orientation,
                    ..shader
                }
                .shader(),
            );
        }
    }
}

#[test]
fn attention() {
    let forms = SkinnyRows::ALL
        .iter()
        .flat_map(|&rows| [AttentionForm::Few(rows), AttentionForm::FewSplit(rows)]);
    for form in forms.chain([AttentionForm::Tile, AttentionForm::Join]) {
        for cols in ValueCols::ALL {
            for mask in [
                Mask::Absent,
                Mask::Present(Element::Bool),
                Mask::Present(Element::F32),
                Mask::Present(Element::I32),
            ] {
                for element in [Element::F32, Element::F16, Element::Bf16] {
                    let shader = AttentionShader {
                        query: element,
                        key: element,
                        value: element,
                        mask,
                        out: element,
                        key_width: match (form, cols) {
                            (
                                AttentionForm::Few(_) | AttentionForm::FewSplit(_),
                                ValueCols::Wide,
                            ) => Width::Four,
                            _ => Width::One,
                        },
                        form,
                        cols,
                    };
                    check(&shader.shader());
                }
            }
        }
    }
}

#[test]
fn convolution() {
    let forms = Tile::ALL
        .map(ConvolutionForm::Tiled)
        .into_iter()
        .chain([ConvolutionForm::Direct]);
    for form in forms {
        for direction in [Direction::Forward, Direction::Transposed] {
            for weights in [
                WeightLayout::Strided,
                WeightLayout::Dense(Width::One),
                WeightLayout::Dense(Width::Four),
            ] {
                if form == ConvolutionForm::Direct && weights != WeightLayout::Strided {
                    continue;
                }
                let elements = [
                    (Element::F32, Element::F32),
                    (Element::F32, Element::F16),
                    (Element::Bf16, Element::Bf16),
                    (Element::I8, Element::I32),
                ];
                for (weight, out) in elements {
                    let shader = ConvolutionShader {
                        input: out,
                        weight,
                        out,
                        accumulator: accumulator(weight, out),
                        direction,
                        weights,
                        kernel: if out == Element::F16 {
                            [0; 3]
                        } else {
                            [1, 3, 5]
                        },
                        form,
                        epilogue: if out == Element::F32 {
                            bias()
                        } else {
                            Epilogue::default()
                        },
                    };
                    check(&shader.shader());
                }
            }
        }
    }
}

#[test]
fn sort() {
    for form in [
        SortForm::Rows(BlockSize::Small),
        SortForm::Rows(BlockSize::Large),
        SortForm::Blocks,
        SortForm::Merge,
        SortForm::MergeBlocks,
        SortForm::Finish,
    ] {
        for descending in [false, true] {
            for bits in [8, 16, 32, 64] {
                for kind in [KeyKind::Unsigned, KeyKind::Signed] {
                    check(
                        &SortShader {
                            bits,
                            kind,
                            descending,
                            form,
                        }
                        .shader(),
                    );
                }
            }
            for (bits, infinity) in [(16, 0x7c00), (16, 0x7f80), (32, 0x7f80_0000)] {
                let kind = KeyKind::Float { infinity };
                check(
                    &SortShader {
                        bits,
                        kind,
                        descending,
                        form,
                    }
                    .shader(),
                );
            }
        }
    }
}
