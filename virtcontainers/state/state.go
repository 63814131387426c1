// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package state is the journal of a pod: the things that it holds on the host, each written to its bundle before it is
// acquired, so that a clean-up after a crash finds all of them. An entry may therefore name
// a thing that was never made, or that is gone already; releasing is idempotent.
//
// A process is named by its id, its start time and the boot it lives in, so that an id that the
// kernel has reused is never taken for ours.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// File is the journal's name in a bundle.
const File = "coco-state.json"

// Version of the format. A journal of another version is refused: guessing could kill the wrong thing.
const Version = 1

// maxSize bounds the journal that is read; a usual one has a few hundred bytes.
const maxSize = 256 << 10

// ErrNone says that a bundle has no journal.
var ErrNone = errors.New("no journal")

// Process is a process of ours.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, /proc/<pid>/stat field 22
}

// Pod is everything that a pod holds on the host.
type Pod struct {
	Version   int      `json:"version"`
	ID        string   `json:"id"`
	Namespace string   `json:"namespace"`
	BootID    string   `json:"bootId"` // of the host, /proc/sys/kernel/random/boot_id
	Bundle    string   `json:"bundle"`
	VMM       *Process `json:"vmm,omitempty"` // launcher, then VMM
	// Helper is the process beside the VMM: launcher, then what serves files of the host or the TPM. No pod has both.
	Helper      *Process          `json:"virtiofsd,omitempty"`
	StateDir    string            `json:"stateDir,omitempty"`  // sockets
	User        uint32            `json:"user,omitempty"`      // id of the VMM's user, taken in StateDir's parent
	Cgroups     []string          `json:"cgroups,omitempty"`   // directories, parents first
	OwnNetNS    string            `json:"ownNetns,omitempty"`  // file that a namespace of ours is mounted on
	NetNS       string            `json:"netns,omitempty"`     // namespace of others that we changed
	Redirects   []Redirect        `json:"redirects,omitempty"` // in NetNS
	Disks       []string          `json:"disks,omitempty"`     // files of volumes
	Hooks       []Hook            `json:"hooks,omitempty"`     // poststop hooks that are due
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Redirect is a tap of ours and the link of others that it is joined with.
type Redirect struct {
	Link string `json:"link"`
	Tap  string `json:"tap"`
}

// Hook is a poststop hook.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Timeout int      `json:"timeout,omitempty"` // seconds
}

// Decode reads a journal. Everything it names is validated: relative paths, unknown fields and
// process ids that cannot be ours are refused.
func Decode(r io.Reader) (Pod, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return Pod{}, fmt.Errorf("read journal: %w", err)
	}
	if len(data) > maxSize {
		return Pod{}, fmt.Errorf("journal is larger than %d bytes", maxSize)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var p Pod
	if err := dec.Decode(&p); err != nil {
		return Pod{}, fmt.Errorf("decode journal: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Pod{}, errors.New("decode journal: data after the end")
	}
	if err := p.validate(); err != nil {
		return Pod{}, fmt.Errorf("journal: %w", err)
	}
	return p, nil
}

func (p Pod) validate() error {
	if p.Version != Version {
		return fmt.Errorf("version %d, this program writes %d", p.Version, Version)
	}
	for _, pr := range []*Process{p.VMM, p.Helper} {
		if pr != nil && (pr.PID <= 1 || pr.StartTime == 0) {
			return fmt.Errorf("process %d started at %d cannot be the pod's", pr.PID, pr.StartTime)
		}
	}
	if len(p.Redirects) > 0 && p.NetNS == "" {
		return errors.New("redirects without a network namespace")
	}
	for _, r := range p.Redirects {
		if !validLink(r.Link) || !validLink(r.Tap) {
			return fmt.Errorf("%q and %q are not both names of links", r.Link, r.Tap)
		}
	}
	paths := append([]string{p.StateDir, p.OwnNetNS, p.NetNS}, p.Cgroups...)
	paths = append(paths, p.Disks...)
	for _, h := range p.Hooks {
		paths = append(paths, h.Path)
	}
	for _, s := range paths {
		if s != "" && (!filepath.IsAbs(s) || filepath.Clean(s) != s || strings.Contains(s, "\x00")) {
			return fmt.Errorf("%q is not a clean absolute path", s)
		}
	}
	for _, d := range p.Disks {
		if filepath.Base(d) != DiskName {
			return fmt.Errorf("%q is not a volume's disk", d)
		}
	}
	for _, c := range p.Cgroups {
		if !strings.HasPrefix(c, "/sys/fs/cgroup/") {
			return fmt.Errorf("%q is not a cgroup", c)
		}
	}
	if len(p.StateDir) > 0 && strings.Count(p.StateDir, "/") < 2 {
		return fmt.Errorf("%q cannot be a state directory", p.StateDir)
	}
	return nil
}

// validLink says whether the kernel would take a name for a link.
func validLink(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\x00")
}

// Load reads the journal of a bundle; ErrNone when there is none.
func Load(bundle string) (Pod, error) {
	f, err := os.Open(filepath.Join(bundle, File))
	if errors.Is(err, fs.ErrNotExist) {
		return Pod{}, fmt.Errorf("%s: %w", bundle, ErrNone)
	}
	if err != nil {
		return Pod{}, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	p, err := Decode(f)
	if err != nil {
		return Pod{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return p, nil
}

// Journal is the writing end. Its methods may be called from several goroutines.
type Journal struct {
	path string

	mu  sync.Mutex
	pod Pod // guarded by mu
}

// New starts the journal of a pod and writes it. A bundle that has one already belongs to another
// pod, alive or crashed, and is refused with fs.ErrExist.
func New(bundle string, p Pod) (*Journal, error) {
	p.Version, p.Bundle = Version, bundle
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &Journal{path: filepath.Join(bundle, File), pod: p}
	if _, err := os.Lstat(j.path); err == nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, fs.ErrExist)
	}
	if err := j.Update(func(*Pod) {}); err != nil {
		return nil, err
	}
	return j, nil
}

// Update changes the journal and writes it. A new file is renamed over the old one, so a reader sees one or the other.
// The file is not synced: the bundle is on a tmpfs, and neither it nor the resources in the journal outlive a crash of
// the machine.
func (j *Journal) Update(change func(*Pod)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := j.pod
	change(&next)
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode journal: %w", err)
	}
	tmp := j.path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := os.Rename(tmp, j.path); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write journal: %w", err)
	}
	j.pod = next
	return nil
}

// Disks lists the disks that are written down.
func (j *Journal) Disks() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.pod.Disks)
}

// DiskName is the file in an emptyDir's directory on the host that is the volume's disk.
const DiskName = ".coco-disk.img"

// RemoveDisk removes a volume's disk; one that is gone, with its directory or without, is fine.
func RemoveDisk(name string) error {
	dir, err := hostfs.OpenOwned(filepath.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove a volume's disk: %w", err)
	}
	defer dir.Close()
	return RemoveDiskIn(dir)
}

// RemoveDiskIn removes the disk in a volume's directory, which may be open O_PATH. Anything else of that name is
// not touched.
func RemoveDiskIn(dir *os.File) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), DiskName, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("remove a volume's disk: %s/%s is no file", dir.Name(), DiskName)
	}
	if err == nil {
		err = unix.Unlinkat(int(dir.Fd()), DiskName, 0)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a volume's disk: %s/%s: %w", dir.Name(), DiskName, err)
	}
	return nil
}

// Remove deletes the journal: nothing is held any more.
func (j *Journal) Remove() error { return Remove(filepath.Dir(j.path)) }

// Remove deletes the journal of a bundle. A journal that is gone is fine.
func Remove(bundle string) error {
	if err := os.Remove(filepath.Join(bundle, File)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal: %w", err)
	}
	return nil
}
