//! Stores that differ from another one in a method or two.

/// The named methods of a `QuotaStore` ask the store that stands in brackets: a field, or what a method gives.
macro_rules! pass_on {
    ($to:tt $($method:ident),+) => { $(pass_on!(@$method $to);)+ };
    (@reserve [$($to:tt)+]) => {
        fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
            self.$($to)+.reserve(reservation)
        }
    };
    (@extend [$($to:tt)+]) => {
        fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
            self.$($to)+.extend(id, departments, by)
        }
    };
    (@settle [$($to:tt)+]) => {
        fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
            self.$($to)+.settle(settlement)
        }
    };
    (@release [$($to:tt)+]) => {
        fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
            self.$($to)+.release(id, departments)
        }
    };
    (@usage [$($to:tt)+]) => {
        fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
            self.$($to)+.usage(department, days)
        }
    };
    (@seed [$($to:tt)+]) => {
        fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
            self.$($to)+.seed(department, baseline)
        }
    };
    (@adjust [$($to:tt)+]) => {
        fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
            self.$($to)+.adjust(adjustment)
        }
    };
}
