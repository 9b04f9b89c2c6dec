//! `cupola train` and `cupola eval` end to end, on small real data: digits and a table of examples/train, the drawn digits of
//! examples/digits.

mod support;

use serde_json::Value as Json;
use std::path::Path;
use support::{Folder, failure, succeed as cupola};

/// JSON lines.
fn lines(output: &str) -> Vec<Json> {
    let each = output.lines();
    each.map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}")))
        .collect()
}

/// Header and data of a safetensors file.
fn safetensors(path: &str) -> (Json, Vec<u8>) {
    let bytes = std::fs::read(path).expect(path);
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
    (header, bytes[8 + len..].to_vec())
}

/// The f32 numbers of a tensor.
fn numbers(path: &str, name: &str) -> Vec<f32> {
    let (header, data) = safetensors(path);
    let at = |i: usize| header[name]["data_offsets"][i].as_u64().expect("offsets") as usize;
    let words = data[at(0)..at(1)].chunks_exact(4);
    words
        .map(|w| f32::from_le_bytes(w.try_into().expect("four bytes")))
        .collect()
}

/// A configuration of digits that has everything which a resumed run must go on with: dropout, momentum, a schedule,
/// batches that do not divide the data.
fn digits(more: &str) -> String {
    let root = support::repository();
    format!(
        "loss = \"ce:smoothing=0.05\"\noptim = \"adam:lr=2e-3\"\nschedule = \"cosine:warmup=5,steps=60\"\nbatch = 96\n\
         seed = 3\nmetrics = [\"accuracy\", \"f1\"]\n{more}\n[data]\nfiles = [{:?}]\nkind = \"table\"\nclass_target = true\n\
         standardise = true\ntest = 0.2\nvalidation = 0.1\n[model]\nlayers = [\"linear:64,name=fc1\", \"relu\", \
         \"dropout:0.2\", \"linear:classes,name=fc2\"]\n",
        root.join("examples/train/digits.csv.gz")
    )
}

#[test]
fn a_line_is_found_by_gradient_descent() {
    let folder = Folder::new("train-linear");
    let weights = folder.path("line.safetensors");
    let page = folder.path("report.html");
    let checkpoints = folder.path("checkpoints");
    let output = cupola(&[
        "train",
        "examples/train/linear.toml",
        "--checkpoints",
        &checkpoints,
        "--export",
        &weights,
        "--html",
        &page,
        "--json",
    ]);
    let all = lines(&output);
    let steps: Vec<&Json> = all.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 200);
    for key in ["step", "epoch", "lr", "scale", "samples_per_s"] {
        assert!(steps.iter().all(|s| s[key].as_f64().is_some()), "{key}");
    }
    assert_eq!(steps[199]["step"], 200);
    assert_eq!(steps[0]["lr"], 0.1);
    let (weight, bias) = (numbers(&weights, "fc.weight"), numbers(&weights, "fc.bias"));
    assert!(
        (weight[0] - 2.0).abs() < 1e-4 && bias[0].abs() < 1e-4,
        "{weight:?} {bias:?}"
    );
    let page = std::fs::read_to_string(page).expect("a report");
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http"));
    let files = std::fs::read_dir(&checkpoints).expect("checkpoints");
    let names: Vec<String> = files
        .flatten()
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&"step-00000200.safetensors".to_string()));
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_never_stopped() {
    let folder = Folder::new("train-resume");
    let config = folder.write("digits.toml", &digits("steps = 20"));
    let (whole, parts) = (folder.path("whole"), folder.path("parts"));
    let first = cupola(&["train", &config, "--checkpoints", &whole, "--json"]);
    cupola(&["train", &config, "--checkpoints", &parts, "--steps", "10"]);
    let second = cupola(&[
        "train",
        &config,
        "--checkpoints",
        &parts,
        "--resume",
        "--json",
    ]);
    let last = "step-00000020.safetensors";
    let [a, b] = [&whole, &parts].map(|f| safetensors(&format!("{f}/{last}")));
    assert_eq!(a.1, b.1, "bytes of all state slots");
    assert!(a.1.len() > 12 * 64 * 64, "the optimiser's memory is there");
    for key in ["progress", "classes", "vocabulary"] {
        assert_eq!(a.0["__metadata__"][key], b.0["__metadata__"][key]);
    }
    let losses = |output: &str| -> Vec<Json> {
        let all = lines(output).into_iter();
        let steps = all.filter(|l| l.get("epoch").is_some());
        steps.map(|l| l["loss"].clone()).collect()
    };
    let (first, second) = (losses(&first), losses(&second));
    assert_eq!(first.len(), 20);
    assert_eq!(first[10..], second[..]);
    // Another seed is another run.
    let (status, error) = failure(&[
        "train",
        &config,
        "--checkpoints",
        &parts,
        "--resume",
        "--seed",
        "4",
    ]);
    assert_eq!(status, 3);
    assert!(error.contains("another seed"), "{error}");
}

#[test]
fn digits_are_learnt_and_measured() {
    let folder = Folder::new("train-digits");
    let config = folder.write("digits.toml", &digits("epochs = 20"));
    let onnx = folder.path("digits.onnx");
    let binary = folder.path("digits.cupola");
    let output = cupola(&[
        "train", &config, "--export", &onnx, "--export", &binary, "--json",
    ]);
    let all = lines(&output);
    let test = &all.last().expect("an end")["test"];
    assert!(
        test["accuracy"].as_f64().expect("a number") > 0.95,
        "{test}"
    );
    let validations = all.iter().filter(|l| l.get("validation").is_some());
    assert_eq!(validations.count(), 20);
    let measured = |more: &[&str]| -> Json {
        let output = cupola(&[&["eval"], more, &["--json"]].concat());
        serde_json::from_str(&output).expect("a document")
    };
    // The last checkpoint is the trained model.
    let checkpoints = folder.path("checkpoints/digits");
    let again = measured(&[&checkpoints]);
    assert_eq!(&again, test);
    let best = measured(&[&config, "--part", "validation", "--metric", "recall"]);
    assert_eq!(best["samples"], 179);
    assert!(best["recall"].as_f64().is_some() && best.get("f1").is_none());
    // Both exported files say the same.
    let run = |model: &str| -> Json {
        let stats = folder.path("out");
        cupola(&["run", model, "-i", "x=5x64xf32:rand", "--outputs", &stats]);
        let bytes = std::fs::read(folder.path("out/y.npy")).expect("an output");
        Json::from(format!("{:?}", &bytes[128..]))
    };
    assert_eq!(run(&onnx), run(&binary));
}

#[test]
fn texts_are_continued_character_by_character() {
    let folder = Folder::new("train-text");
    let root = support::repository();
    let config = folder.write(
        "text.toml",
        &format!(
            "loss = \"ce\"\noptim = \"adam:lr=5e-3\"\nclip_norm = 1.0\nbatch = 8\nsteps = 60\nmetrics = [\"perplexity\", \
             \"bleu\"]\n[data]\nfiles = [{:?}]\nkind = \"text\"\nunits = \"characters\"\nvocabulary = 80\nlength = 32\ntest = \
             0.1\n[model]\nlayers = [\"embedding:24\", \"gru:48\", \"linear:tokens\"]\n",
            root.join("docs/training.md")
        ),
    );
    let output = cupola(&["train", &config, "--json"]);
    let all = lines(&output);
    let test = &all.last().expect("an end")["test"];
    let number = |key: &str| test[key].as_f64().expect(key);
    // All characters alike would give 80.
    assert!(number("perplexity") < 22.0, "{test}");
    assert!((number("perplexity") - number("loss").exp()).abs() < 1e-9);
    assert!(all[0]["grad_norm"].as_f64().is_some_and(|n| n > 0.0));
    // Another text in the same vocabulary.
    let other = root.join("README.md");
    let checkpoints = folder.path("checkpoints/text");
    let output = cupola(&[
        "eval",
        &checkpoints,
        "--data",
        &other.to_string_lossy(),
        "--json",
    ]);
    let document: Json = serde_json::from_str(&output).expect("a document");
    assert!(
        document["perplexity"].as_f64().is_some_and(|p| p < 60.0),
        "{document}"
    );
}

#[test]
fn runs_in_low_precision_and_of_other_losses_learn() {
    let folder = Folder::new("train-amp");
    let config = folder.write("digits.toml", &digits("epochs = 8"));
    for amp in ["bf16", "f16"] {
        let output = cupola(&["train", &config, "--amp", amp, "--json"]);
        let all = lines(&output);
        let accuracy = all.last().expect("an end")["test"]["accuracy"].as_f64();
        assert!(accuracy.expect("a number") > 0.8, "{amp}: {accuracy:?}");
        let scale = all[0]["scale"].as_f64().expect("a scale");
        assert_eq!(scale, if amp == "f16" { 65536.0 } else { 1.0 });
    }
    let table = cupola(&[
        "train",
        "examples/train/diabetes.toml",
        "--checkpoints",
        &folder.path("diabetes"),
        "--json",
    ]);
    let all = lines(&table);
    let mse = all.last().expect("an end")["test"]["mse"].as_f64();
    // Always to say the mean has an error of about 5,900.
    assert!(mse.expect("a number") < 4000.0, "{mse:?}");
}

#[test]
fn norms_of_large_gradients_are_those_of_the_reference() {
    let folder = Folder::new("train-norm");
    let text = digits("steps = 1\nclip_norm = 1.0").replace("batch = 96", "batch = 2");
    let config = folder.write(
        "wide.toml",
        &text.replace("linear:64", "linear:2000\", \"linear:2000"),
    );
    let norm = |device: &str| {
        let checkpoints = folder.path(device);
        let args = ["train", &config, "--device", device, "--json"];
        let output = cupola(&[&args[..], &["--checkpoints", &checkpoints]].concat());
        lines(&output)[0]["grad_norm"].as_f64().expect("a norm")
    };
    let (cpu, reference) = (norm("cpu"), norm("reference"));
    // One sum of four million squares in a few parts of f32 is more than ten times as far away.
    assert!(
        (cpu - reference).abs() < 1e-6 * reference,
        "{cpu} {reference}"
    );
}

#[test]
fn a_model_file_is_trained_further() {
    let folder = Folder::new("train-onnx");
    let samples = support::repository().join("examples/digits/samples");
    for entry in std::fs::read_dir(samples).expect("drawings").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let class = folder.0.join("drawn").join(&name[..1]);
        std::fs::create_dir_all(&class).expect("a folder");
        std::fs::copy(entry.path(), class.join(&name)).expect("a copy");
    }
    let tuned = folder.path("tuned.onnx");
    let drawn = folder.path("drawn");
    let output = cupola(&[
        "train",
        "examples/digits/digits.onnx",
        "--data",
        &drawn,
        "--validation",
        "0.5",
        "--loss",
        "ce",
        "--optim",
        "sgd:lr=1e-3",
        "--epochs",
        "2",
        "--metric",
        "accuracy",
        "--checkpoints",
        &folder.path("checkpoints"),
        "--export",
        &tuned,
        "--json",
    ]);
    let all = lines(&output);
    let validated: Vec<f64> = (all.iter())
        .filter_map(|l| l["validation"]["accuracy"].as_f64())
        .collect();
    assert_eq!(validated, [1.0, 1.0]);
    let read = cupola(&["run", &tuned, "-i", "image=examples/digits/seven.png"]);
    assert!(read.contains("digit") && read.contains('7'), "{read}");
}

/// Ctrl-C, as a terminal sends it.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_a_checkpoint_after_its_step() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = Folder::new("train-interrupt");
    let config = folder.write("digits.toml", &digits("epochs = 100000"));
    let mut run = support::cupola(&["train", &config, "--json"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = run.spawn().expect("cupola starts");
    let output = BufReader::new(run.stdout.take().expect("a pipe"));
    let mut lines = output.lines().map_while(Result::ok);
    assert!(lines.nth(200).is_some(), "steps");
    let pid = run.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill starts").success());
    let last = lines.last().expect("an end");
    assert!(last.contains("\"ended\":\"stopped\""), "{last}");
    assert_eq!(run.wait().expect("an end").code(), Some(1));
    let document: Json = serde_json::from_str(&last).expect("a document");
    let step = document["step"].as_u64().expect("a step");
    let path = format!("checkpoints/digits/step-{step:08}.safetensors");
    assert!(Path::new(&folder.path(&path)).exists(), "{path}");
}

#[test]
fn wrong_configurations_are_one_line_and_a_status() {
    let folder = Folder::new("train-wrong");
    let sound = digits("epochs = 1");
    let cases: &[(&str, &str, i32, &str)] = &[
        (
            "epochs = 1",
            "epoch = 1",
            3,
            "line 7: unknown field `epoch`",
        ),
        ("epochs = 1", "epochs = two", 3, "line 7"),
        ("epochs = 1", "", 3, "epochs or steps is missing"),
        ("adam:lr", "adm:lr", 3, "no optimiser 'adm'"),
        ("linear:64", "linaer:64", 3, "no layer 'linaer'"),
        ("linear:64", "linear:wide", 3, "outputs is 'wide'"),
        ("linear:classes", "linear:3", 3, "3 scores for 10 classes"),
        ("digits.csv.gz", "none.csv", 2, "none.csv does not exist"),
        ("cosine:", "sine:", 3, "no schedule 'sine'"),
        ("\"f1\"", "\"f2\"", 3, "metric 'f2' is none of accuracy"),
        ("batch = 96", "batch = 0", 3, "batch is 0"),
        ("ce:smoothing", "mse:smoothing", 3, "the last layer gives"),
        ("smoothing=0.05", "smoothing=2", 3, "2 is outside 0 to 1"),
        ("smoothing=0.05", "ignore=one", 3, "ignore is no whole"),
        ("linear:64", "linear:99999999999", 3, "there is no memory"),
        ("linear:64", "linear:0", 3, "nothing is left of the sample"),
        ("adam:lr=2e-3", "adam:betas=2/0.9", 3, "betas are from 0"),
        (
            "cosine:warmup=5,steps=60",
            "step:size=0",
            3,
            "'step:size=0': a",
        ),
        (
            "seed = 3",
            "seed = 3\nname = \"../up\"",
            3,
            "name is that of",
        ),
        (
            "[model]",
            "[model]\nfreeze = [\"fc9\"]",
            3,
            "begins with 'fc9'",
        ),
        ("[model]", "[model]\noutput = \"y\"", 3, "of a model.file"),
        (
            "test = 0.2",
            "test = 0.2\nlength = 0",
            3,
            "data.length is 0",
        ),
        (
            "test = 0.2",
            "test = 0.2\nvocabulary = 2",
            3,
            "3 are the least",
        ),
    ];
    for (from, to, status, what) in cases {
        assert!(sound.contains(from), "{from}");
        let config = folder.write("wrong.toml", &sound.replace(from, to));
        let (found, error) = failure(&["train", &config]);
        assert!(error.contains(what), "{error}");
        assert_eq!(found, *status, "{error}");
    }
    assert_eq!(failure(&["train", "none.toml"]).0, 2);
    let config = folder.write("sound.toml", &sound);
    let (status, error) = failure(&["train", &config, "--optim", "adam:lr=fast"]);
    assert_eq!(status, 2);
    assert!(error.contains("lr is 'fast', not a number"), "{error}");
    let data = folder.write("bad.csv", "1,2,3\n4,five,6\n");
    let (status, error) = failure(&["train", &config, "--data", &data]);
    assert_eq!(status, 3);
    assert!(
        error.contains("bad.csv, line 2: field 2 is 'five'"),
        "{error}"
    );
}

#[test]
fn layers_that_leave_nothing_and_labels_out_of_range_are_refused() {
    let folder = Folder::new("train-range");
    let text = "loss = \"ce\"\noptim = \"sgd:lr=0.1\"\nsteps = 1\n[data]\nfiles = [\"x.npy\", \"y.npy\"]\n[model]\nlayers = LAYERS\n";
    let array = |name: &str, dtype: &str, shape: &str, bytes: &[u8]| {
        let header =
            format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
        let header = format!("{header:117}\n");
        let begin = [&b"\x93NUMPY\x01\x00\x76\x00"[..], header.as_bytes(), bytes].concat();
        std::fs::write(folder.0.join(name), begin).expect("an array");
    };
    array("x.npy", "|u1", "3, 1, 8, 8", &[7; 192]);
    let train = |labels: [i64; 3], layers: &str| {
        let bytes: Vec<u8> = labels.iter().flat_map(|l| l.to_le_bytes()).collect();
        array("y.npy", "<i8", "3,", &bytes);
        let config = folder.write("range.toml", &text.replace("LAYERS", layers));
        let out = support::run(&["train", &config]);
        (out.status.code(), support::text(&out.stderr))
    };
    let plain = "[\"flatten\", \"linear:3\"]";
    assert_eq!(train([0, 2, -100], plain).0, Some(0));
    for (labels, layers, what) in [
        (
            [0, 2, -1],
            plain,
            "a target -1, which is none of the classes 0 to 2",
        ),
        ([0, 3, 1], plain, "3 scores for 4 classes"),
        ([0, 1 << 50, 1], plain, "a target 1125899906842624"),
        (
            [0, 1, 2],
            "[\"conv:4,kernel=9\", \"flatten\", \"linear:3\"]",
            "nothing is left",
        ),
        (
            [0, 1, 2],
            "[\"max_pool:9\", \"flatten\", \"linear:3\"]",
            "nothing is left",
        ),
        (
            [0, 1, 2],
            "[\"conv:0\", \"flatten\", \"linear:3\"]",
            "nothing is left",
        ),
    ] {
        let (status, error) = train(labels, layers);
        assert_eq!(status, Some(3), "{error}");
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn damaged_checkpoints_are_refused() {
    let folder = Folder::new("train-damage");
    let config = folder.write("digits.toml", &digits("steps = 2"));
    let checkpoints = folder.path("checkpoints/digits");
    cupola(&["train", &config]);
    let path = format!("{checkpoints}/step-00000002.safetensors");
    let bytes = std::fs::read(&path).expect("a checkpoint");
    let (half, bit) = (folder.path("half"), folder.path("bit"));
    std::fs::write(&half, &bytes[..bytes.len() / 2]).expect("a file");
    let mut changed = bytes.clone();
    *changed.last_mut().expect("data") ^= 1;
    std::fs::write(&bit, changed).expect("a file");
    for damaged in [&half, &bit, &config.replace("digits.toml", "none")] {
        let (status, error) = failure(&["train", &config, "--resume", damaged]);
        assert!(matches!(status, 2 | 3), "{error}");
        assert_ne!(failure(&["eval", damaged]).0, 0);
    }
    // What was there before a run that is killed stays: only whole files have the names of checkpoints.
    assert!(!Path::new(&format!("{path}.part")).exists());
}

#[test]
fn numbers_that_are_none_are_traced_to_where_they_begin() {
    let folder = Folder::new("train-nan");
    let config = folder.write("digits.toml", &digits("steps = 40"));
    let (status, error) = failure(&["train", &config, "--optim", "sgd:lr=1e20"]);
    assert_eq!(status, 1);
    assert!(error.contains("the loss of step"), "{error}");
    assert!(error.contains("it begins at"), "{error}");
    assert!(error.contains("layer") || error.contains("fc"), "{error}");
}
