/// What a record that was written survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The process, and no more: the system is never asked to bring anything to the disk. After a power failure or a crash
    /// of the system the file may lack records, or be damaged.
    Memory,
    /// That the process is killed, at any moment. After a power failure or a crash of the system the file is sound, but
    /// may lack the latest records.
    Kill,
    /// A power failure too, as far as the disk keeps its word: each group is brought to the disk before it counts as
    /// written. Costs milliseconds for each group.
    PowerLoss,
}
