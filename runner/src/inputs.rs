//! Inputs from the command line: files, images, random numbers.

use crate::args::{CompileArgs, InputArgs};
use crate::fail::{Failure, Outcome};
use crate::{npy, pb};
use cupola::ir::convert::{self, Lanes};
use cupola::{DType, Tensor, Value, ValueType};
use image::imageops::FilterType;
use std::collections::BTreeMap;
use std::path::Path;

/// Dimensions fixed by `--set`.
pub fn parse_set(set: &[String]) -> Outcome<BTreeMap<String, i64>> {
    let one = |s: &String| {
        let parsed = s
            .split_once('=')
            .and_then(|(n, v)| Some((n.trim().to_string(), v.trim().parse::<i64>().ok()?)));
        parsed
            .filter(|(_, v)| *v >= 0)
            .ok_or_else(|| Failure::usage(format!("--set {s}: write NAME=N with N >= 0")))
    };
    set.iter().map(one).collect()
}

/// All inputs given by `-i` and `--inputs`; with `fill`, inputs not given are made up from a seeded generator.
pub fn gather(
    types: &[(String, ValueType)],
    args: &InputArgs,
    compile: &CompileArgs,
    fill: bool,
) -> Outcome<BTreeMap<String, Value>> {
    let set = parse_set(&compile.set)?;
    let mut all = BTreeMap::new();
    if let Some(dir) = &args.inputs {
        for (i, (name, ty)) in types.iter().enumerate() {
            let path = dir.join(format!("input_{i}.pb"));
            if path.exists() {
                all.insert(name.clone(), pb::read(&path, ty)?);
            }
        }
    }
    for spec in &args.input {
        let given = spec
            .split_once('=')
            .filter(|(n, _)| types.iter().any(|(name, _)| name == n));
        let (name, what) = match (given, types) {
            (Some((name, what)), _) => (name, what),
            (None, _) if Path::new(spec).extension().is_some_and(|e| e == "npz") => {
                all.extend(npz_inputs(Path::new(spec), types)?);
                continue;
            }
            (None, [(only, _)]) if !spec.contains('=') => (only.as_str(), spec.as_str()),
            (None, _) => {
                let name = spec.split_once('=').map_or(spec.as_str(), |(n, _)| n);
                let names: Vec<&str> = types.iter().map(|(n, _)| n.as_str()).collect();
                return Err(Failure::usage(format!(
                    "no input '{name}'; there are {}",
                    names.join(", ")
                )));
            }
        };
        let ty = types.iter().find(|(n, _)| n == name).map(|(_, t)| t);
        let ty = ty.unwrap_or_else(|| unreachable!("bug: name was looked up"));
        all.insert(
            name.to_string(),
            one_input(name, what, ty, compile.seed, &set)?,
        );
    }
    if fill {
        for (name, ty) in types {
            if !all.contains_key(name)
                && let ValueType::Tensor(t) = ty
            {
                let shape: Vec<usize> = t.dims.iter().map(|d| default_extent(d, &set)).collect();
                all.insert(
                    name.clone(),
                    random(name, t.dtype, shape, compile.seed)?.into(),
                );
            }
        }
    }
    Ok(all)
}

/// An extent for made-up inputs: what `--set` says, else 1.
fn default_extent(d: &cupola::Dim, set: &BTreeMap<String, i64>) -> usize {
    let mut bindings = cupola::Bindings::default();
    d.for_each_sym(&mut |s| bindings.set(s.clone(), set.get(s.name()).copied().unwrap_or(1)));
    d.eval(&bindings)
        .and_then(|v| usize::try_from(v).ok())
        .unwrap_or(1)
}

/// Members of an `.npz` file that carry input names, `NAME` or `in.<i>`.
fn npz_inputs(path: &Path, types: &[(String, ValueType)]) -> Outcome<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for (member, tensor) in npy::read_npz(path)? {
        let index = member
            .strip_prefix("in.")
            .and_then(|i| i.parse::<usize>().ok());
        let name = match types.iter().find(|(n, _)| *n == member) {
            Some((n, _)) => Some(n),
            None => index.and_then(|i| types.get(i)).map(|(n, _)| n),
        };
        if let Some(name) = name {
            all.insert(name.clone(), tensor.into());
        }
    }
    Ok(all)
}

fn one_input(
    name: &str,
    what: &str,
    ty: &ValueType,
    seed: u64,
    set: &BTreeMap<String, i64>,
) -> Outcome<Value> {
    if let Some(spec) = what
        .strip_suffix(":rand")
        .map(|s| (s, true))
        .or(what.strip_suffix(":zeros").map(|s| (s, false)))
        && let Some((shape, dtype)) = parse_shape(spec.0, ty, set)
    {
        let t = if spec.1 {
            random(name, dtype, shape, seed)?
        } else {
            zeros(name, dtype, shape)?
        };
        return Ok(t.into());
    }
    let path = Path::new(what);
    let extension = path
        .extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    match extension.as_str() {
        "npy" => npy::read(path).map(Value::from),
        "npz" => {
            let members = npy::read_npz(path)?;
            let found = members
                .iter()
                .find(|(n, _)| n == name)
                .or(members.first().filter(|_| members.len() == 1));
            let names: Vec<&str> = members.iter().map(|(n, _)| n.as_str()).collect();
            found.map(|(_, t)| t.clone().into()).ok_or_else(|| {
                Failure::usage(format!(
                    "{what} has no member '{name}'; there are {}",
                    names.join(", ")
                ))
            })
        }
        "pb" => pb::read(path, ty),
        "png" | "jpg" | "jpeg" => image_input(path, name, ty, set).map(Value::from),
        _ => Err(Failure::usage(format!(
            "input '{name}': '{what}' is neither a .npy, .npz, .pb, .png or .jpg file nor SHAPExDTYPE:rand or :zeros"
        ))),
    }
}

/// `1x3x224xf32`, `f32` (a scalar) or nothing (the model's own type).
fn parse_shape(
    spec: &str,
    ty: &ValueType,
    set: &BTreeMap<String, i64>,
) -> Option<(Vec<usize>, DType)> {
    let own = ty.as_tensor()?;
    if spec.is_empty() {
        return Some((
            own.dims.iter().map(|d| default_extent(d, set)).collect(),
            own.dtype,
        ));
    }
    let mut parts: Vec<&str> = spec.split('x').collect();
    let dtype = match parts.last().and_then(|p| dtype_of(p)) {
        Some(d) => {
            parts.pop();
            d
        }
        None => own.dtype,
    };
    let shape: Option<Vec<usize>> = parts.into_iter().map(|p| p.parse().ok()).collect();
    Some((shape?, dtype))
}

/// The dtype of a name of ours (`f32`) or NumPy's (`float32`).
fn dtype_of(name: &str) -> Option<DType> {
    let long = [
        ("bfloat", "bf"),
        ("float", "f"),
        ("uint", "u"),
        ("int", "i"),
    ];
    let short = |(long, short)| Some(format!("{short}{}", name.strip_prefix(long)?));
    let short = long.into_iter().find_map(short);
    DType::from_name(short.as_deref().unwrap_or(name))
}

fn element_count(name: &str, dtype: DType, shape: &[usize]) -> Outcome<usize> {
    let size = Tensor::size_of(dtype, shape).filter(|s| *s < 1 << 40);
    size.ok_or_else(|| Failure::usage(format!("input '{name}': {dtype}{shape:?} cannot be made")))?;
    Ok(shape.iter().product())
}

fn zeros(name: &str, dtype: DType, shape: Vec<usize>) -> Outcome<Tensor> {
    element_count(name, dtype, &shape)?;
    let size = Tensor::size_of(dtype, &shape).unwrap_or(0);
    let t = Tensor::new(dtype, shape, vec![0u8; size].into());
    t.ok_or_else(|| Failure::usage(format!("input '{name}': no zeros of {dtype}")))
}

/// Floats in -1..1, integers in 0..2 (valid as indices and masks), bools.
fn random(name: &str, dtype: DType, shape: Vec<usize>, seed: u64) -> Outcome<Tensor> {
    let len = element_count(name, dtype, &shape)?;
    let salt = name.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let mut state = salt;
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let lanes = if dtype.is_float() {
        Lanes::F(
            (0..len)
                .map(|_| (next() >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
                .collect(),
        )
    } else if dtype.class() == cupola::ir::Class::Signed {
        Lanes::I((0..len).map(|_| (next() >> 63) as i64).collect())
    } else {
        Lanes::U((0..len).map(|_| next() >> 63).collect())
    };
    let t = convert::tensor(&lanes, dtype, &shape);
    t.ok_or_else(|| Failure::usage(format!("input '{name}': no random numbers of {dtype}")))
}

/// Decodes a picture for an input of extents `[channels, height, width]` or `[height, width, channels]`, with or without
/// a batch in front. It is scaled to fit (the border takes the colour of the picture's own border), grey for one
/// channel; floats are 0..1.
pub fn image_input(
    path: &Path,
    name: &str,
    ty: &ValueType,
    set: &BTreeMap<String, i64>,
) -> Outcome<Tensor> {
    let bad = |what: String| Failure::usage(format!("input '{name}': {what}"));
    let t = ty
        .as_tensor()
        .ok_or_else(|| bad("a picture is a tensor".into()))?;
    let reader = image::ImageReader::open(path).map_err(|e| Failure::io("cannot read", path, e))?;
    let reader = reader
        .with_guessed_format()
        .map_err(|e| Failure::io("cannot read", path, e))?;
    let picture = reader
        .decode()
        .map_err(|e| Failure::malformed(format!("{}: {e}", path.display())))?;
    let own = |d: &cupola::Dim, picture: u32| match d.as_const() {
        Some(c) => c.max(0) as u32,
        None => d
            .as_sym()
            .and_then(|s| set.get(s.name()))
            .map_or(picture, |v| *v as u32),
    };
    let rank = t.rank();
    if !(2..=4).contains(&rank) {
        return Err(bad(format!("a picture does not fit {ty}")));
    }
    let channels_at = |axis: usize| t.dims[axis].as_const().filter(|c| matches!(c, 1 | 3 | 4));
    let (channels, (h, w), last) = match rank {
        2 => (1, (0, 1), false),
        _ if channels_at(rank - 3).is_some() => (
            channels_at(rank - 3).unwrap_or(3),
            (rank - 2, rank - 1),
            false,
        ),
        _ if channels_at(rank - 1).is_some() => (
            channels_at(rank - 1).unwrap_or(3),
            (rank - 3, rank - 2),
            true,
        ),
        _ => (3, (rank - 2, rank - 1), false),
    };
    let (height, width) = (
        own(&t.dims[h], picture.height()),
        own(&t.dims[w], picture.width()),
    );
    let planes = fit(&picture, channels as usize, width, height);
    let (height, width, channels) = (height as usize, width as usize, channels as usize);
    let byte = |c: usize, y: usize, x: usize| planes[(y * width + x) * channels + c];
    let mut values = Vec::with_capacity(planes.len());
    if last {
        values.extend_from_slice(&planes);
    } else {
        for c in 0..channels {
            for y in 0..height {
                values.extend((0..width).map(|x| byte(c, y, x)));
            }
        }
    }
    let shape: Vec<usize> = match (rank, last) {
        (2, _) => vec![height, width],
        (3, false) => vec![channels, height, width],
        (3, true) => vec![height, width, channels],
        (_, false) => vec![1, channels, height, width],
        (_, true) => vec![1, height, width, channels],
    };
    let lanes = match t.dtype {
        d if d.is_float() => Lanes::F(values.into_iter().map(f64::from).collect()),
        d if d.class() == cupola::ir::Class::Signed => Lanes::I(
            values
                .into_iter()
                .map(|v| (v * 255.0).round() as i64)
                .collect(),
        ),
        _ => Lanes::U(
            values
                .into_iter()
                .map(|v| (v * 255.0).round() as u64)
                .collect(),
        ),
    };
    convert::tensor(&lanes, t.dtype, &shape)
        .ok_or_else(|| bad(format!("a picture does not fit {ty}")))
}

/// The picture scaled to fit `width` by `height`, channels innermost, 0..1.
fn fit(picture: &image::DynamicImage, channels: usize, width: u32, height: u32) -> Vec<f32> {
    // Transparent pixels count as white, as most viewers show them.
    let rgba = picture.to_rgba8();
    let flat = |p: &image::Rgba<u8>, c: usize| {
        let a = f32::from(p[3]) / 255.0;
        f32::from(p[c]) / 255.0 * a + 1.0 - a
    };
    let rgb = image::Rgb32FImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let p = rgba.get_pixel(x, y);
        image::Rgb([flat(p, 0), flat(p, 1), flat(p, 2)])
    });
    let (pw, ph) = (rgb.width().max(1), rgb.height().max(1));
    let scale = (f64::from(width) / f64::from(pw)).min(f64::from(height) / f64::from(ph));
    let (sw, sh) = (
        ((f64::from(pw) * scale).round() as u32).clamp(1, width.max(1)),
        ((f64::from(ph) * scale).round() as u32).clamp(1, height.max(1)),
    );
    let small = if (sw, sh) == (pw, ph) {
        rgb.clone()
    } else {
        image::imageops::resize(&rgb, sw, sh, FilterType::Triangle)
    };
    let border: Vec<&image::Rgb<f32>> = rgb
        .enumerate_pixels()
        .filter(|(x, y, _)| *x == 0 || *y == 0 || *x == pw - 1 || *y == ph - 1)
        .map(|(_, _, p)| p)
        .collect();
    let mean = |c: usize| border.iter().map(|p| p[c]).sum::<f32>() / border.len().max(1) as f32;
    let edge = [mean(0), mean(1), mean(2)];
    let (left, top) = ((width - sw) / 2, (height - sh) / 2);
    let mut out = Vec::with_capacity(width as usize * height as usize * channels);
    for y in 0..height {
        for x in 0..width {
            let inside = x >= left && x < left + sw && y >= top && y < top + sh;
            let p = if inside {
                small.get_pixel(x - left, y - top).0
            } else {
                edge
            };
            match channels {
                1 => out.push(0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]),
                3 => out.extend(p),
                _ => out.extend([p[0], p[1], p[2], 1.0]),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_two_names() {
        let same = [
            ("f32", "float32"),
            ("bf16", "bfloat16"),
            ("u8", "uint8"),
            ("i64", "int64"),
            ("bool", "bool"),
        ];
        for (ours, numpy) in same {
            assert!(dtype_of(ours).is_some(), "{ours}");
            assert_eq!(dtype_of(ours), dtype_of(numpy), "{numpy}");
        }
        assert_eq!(dtype_of("float31"), None);
    }
}
