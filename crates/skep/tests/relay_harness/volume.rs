//! A small file system of the test's own: an ext4 image, loop-mounted. Needs root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Mounted until dropped.
pub struct Volume {
    dir: TempDir,
    is_mounted: bool,
}

impl Volume {
    /// `Err` says why this machine has none.
    pub fn new(bytes: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(dir.path().join("mount")).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut volume = Self { dir, is_mounted: false };
        volume.mount()?;
        Ok(volume)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    pub fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(self.dir.path().join("image"))
            .arg(self.path()))?;
        self.is_mounted = true;
        Ok(())
    }

    pub fn unmount(&mut self) -> Result<(), String> {
        run(Command::new("umount").arg(self.path()))?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // Something still has a file open there, because a test fails: let go of it as soon as that ends.
            let _ = run(Command::new("umount").arg("--lazy").arg(self.path()));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
