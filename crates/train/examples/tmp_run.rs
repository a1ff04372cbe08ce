use efference_train::report::*;
struct Print;
impl Reporter for Print {
    fn report(&self, e: &Event) {
        match e {
            Event::Metrics { stage, step, values } => {
                if stage == "rl" || stage == "eval" || step % 50 == 0 || *step == 1 {
                    let v: Vec<String> = values
                        .iter()
                        .filter(|(k, _)| !k.starts_with("success/"))
                        .map(|(k, v)| format!("{k}={v:.4}"))
                        .collect();
                    println!("[{stage} {step}] {}", v.join(" "));
                }
                if stage == "rl" || stage == "eval" {
                    let v: Vec<String> = values
                        .iter()
                        .filter(|(k, _)| k.starts_with("success/"))
                        .map(|(k, v)| format!("{}={v:.2}", &k[8..]))
                        .collect();
                    println!("      {}", v.join(" "));
                }
            }
            Event::Progress { .. } => {}
            e => println!("{e:?}"),
        }
    }
}
fn main() {
    efference_ops::host::prepare();
    let a: Vec<String> = std::env::args().collect();
    let config = efference_train::config::TrainConfig::load(std::path::Path::new(&a[1]), &a[2..])
        .unwrap_or_else(|e| panic!("{e}"));
    let s = efference_train::run::start(
        &config,
        efference_train::run_dir::Taken::Suffix,
        &Print,
        &StopFlag::new(),
    )
    .unwrap();
    println!("{s:#?}");
}
