//! Threads that run the pieces of one op and then wait for the next.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::cores::Cores;

/// How long a waiting thread spins before it parks: longer than the gap between two ops of a step, short enough to cost an
/// idle machine nothing.
const SPIN: Duration = Duration::from_micros(20);

/// A job, as the helpers see it: a closure on the caller's stack, borrowed until every helper has said it is done.
struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
}

impl Job<'_> {
    /// Takes tasks until none is left.
    fn work(&self) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            (self.run)(task);
        }
    }
}

struct Shared {
    /// Counts jobs; a helper that sees a new value has work.
    round: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    /// Helpers that are not through with the job.
    busy: AtomicUsize,
    parked: Vec<AtomicBool>,
    /// Who is parked until `busy` is 0, or about to be.
    caller: Mutex<Option<Thread>>,
    stop: AtomicBool,
    panicked: AtomicBool,
    spin: bool,
}

impl Shared {
    fn caller(&self) -> MutexGuard<'_, Option<Thread>> {
        self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until every helper is through: spins a little, then parks.
    fn wait_for_helpers(&self) {
        let through = || self.busy.load(Ordering::SeqCst) == 0;
        let started = Instant::now();
        while self.spin && started.elapsed() < SPIN {
            for _ in 0..32 {
                if through() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        // Named before the look: either this sees 0, or the last helper sees the name.
        *self.caller() = Some(std::thread::current());
        while !through() {
            std::thread::park();
        }
        *self.caller() = None;
    }

    /// A helper is through.
    fn count_out(&self) {
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(caller) = &*self.caller()
        {
            // The name stays: a helper that comes here late, in the caller's next job, must not take it away.
            caller.unpark();
        }
    }
}

/// How many threads compute, and where.
#[derive(Debug, Clone)]
pub struct Threads {
    /// At least 1.
    pub count: usize,
    /// A core for each, in order; without, they run where the system puts them.
    pub cores: Option<Cores>,
}

impl Threads {
    /// So many, anywhere.
    pub fn anywhere(count: usize) -> Self {
        Self { count, cores: None }
    }
}

/// A fixed set of threads, the caller included.
pub struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One job at a time: `run` may be called from any thread.
    running: Mutex<()>,
}

impl ThreadPool {
    /// A pool of `threads` (at least 1) that spins briefly between jobs. With 1 there is only the caller.
    pub fn new(threads: usize) -> Self {
        Self::with_spin(threads, true)
    }

    /// As [`new`](Self::new); without `spin`, helpers park at once (for machines with more threads than cores).
    pub fn with_spin(threads: usize, spin: bool) -> Self {
        Self::start(&Threads::anywhere(threads), spin)
    }

    /// As [`with_spin`](Self::with_spin), each thread on its core if there are such: the calling thread, from now on, on the first.
    ///
    /// # Panics
    /// If there are fewer cores than threads.
    pub fn start(threads: &Threads, spin: bool) -> Self {
        let count = threads.count.max(1) - 1;
        if let Some(cores) = &threads.cores {
            assert!(cores.count() > count, "a core for each thread");
            cores.keep_to(0);
        }
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            busy: AtomicUsize::new(0),
            parked: (0..count).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            spin,
        });
        let helpers = (0..count)
            .map(|index| {
                let (shared, cores) = (Arc::clone(&shared), threads.cores.clone());
                std::thread::Builder::new()
                    .name(format!("kernel-{}", index + 1))
                    .spawn(move || {
                        if let Some(cores) = cores {
                            cores.keep_to(index + 1);
                        }
                        help(&shared, index);
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, helpers, running: Mutex::new(()) }
    }

    /// Threads that take part in a job.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `f(0)`, `f(1)` … `f(tasks - 1)`, each once, in any order and on any thread. Returns when all are done.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        if self.helpers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(f);
            return;
        }
        let _one_at_a_time = self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let job = Job { run: &f, tasks, next: AtomicUsize::new(0) };
        let shared = &self.shared;
        shared.busy.store(self.helpers.len(), Ordering::Relaxed);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        shared.round.fetch_add(1, Ordering::SeqCst);
        for (parked, helper) in shared.parked.iter().zip(&self.helpers) {
            if parked.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        // The helpers hold references to `job` until `busy` is 0, so a panic here must wait for them too.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        shared.wait_for_helpers();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel thread panicked");
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches the panics of its jobs, so there is nothing to learn from how it ended.
            drop(helper.join());
        }
    }
}

/// A helper's life.
fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = wait(shared, index, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = shared.job.load(Ordering::Relaxed);
        // SAFETY: `run` keeps the job alive until `busy` is 0, and this helper has not counted itself out yet.
        let job: &Job<'_> = unsafe { &*job };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work())).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.count_out();
    }
}

/// Waits for a round other than `seen` and returns it: spins a little, then parks.
fn wait(shared: &Shared, index: usize, seen: usize) -> usize {
    let started = Instant::now();
    while shared.spin && started.elapsed() < SPIN {
        for _ in 0..32 {
            let round = shared.round.load(Ordering::SeqCst);
            if round != seen {
                return round;
            }
            std::hint::spin_loop();
        }
    }
    shared.parked[index].store(true, Ordering::SeqCst);
    let round = loop {
        let round = shared.round.load(Ordering::SeqCst);
        if round != seen {
            break round;
        }
        std::thread::park();
    };
    shared.parked[index].store(false, Ordering::SeqCst);
    round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_over_many_rounds() {
        for (threads, spin) in [(1, true), (2, true), (4, false)] {
            let pool = ThreadPool::with_spin(threads, spin);
            for tasks in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, |task| {
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn threads_keep_to_their_cores() {
        let cores = Cores::allowed().expect("the system says");
        let threads = Threads { count: cores.count(), cores: Some(cores.clone()) };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let pool = ThreadPool::start(&threads, false);
                // Each takes one, and none goes on before all have.
                let all = std::sync::Barrier::new(threads.count);
                let seen = Mutex::new(Vec::new());
                pool.run(threads.count, |_| {
                    all.wait();
                    seen.lock()
                        .expect("no panic")
                        .push(Cores::allowed().expect("the system says").to_string());
                });
                let mut seen = seen.into_inner().expect("no panic");
                let mut each: Vec<_> = (0..threads.count)
                    .filter_map(|i| cores.part(i, 1))
                    .map(|core| core.to_string())
                    .collect();
                seen.sort();
                each.sort();
                assert_eq!(seen, each);
            });
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(50, |task| assert!(task != 30, "task 30"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
