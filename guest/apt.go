// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/guest/archive"
)

const (
	debianKeyring   = "/usr/share/keyrings/debian-archive-keyring.gpg"
	debianMirror    = "https://deb.debian.org/debian"
	debianSecurity  = "https://deb.debian.org/debian-security"
	snapshotMirror  = "https://snapshot.debian.org/archive/debian/"
	snapshotSecures = "https://snapshot.debian.org/archive/debian-security/"
	maxRelease      = 4 << 20 // an InRelease file; trixie's has 140 kB
)

// Package is one version of a distribution package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`

	depends []string
}

// String is the package's name and version as origins in the manifest state them.
func (p Package) String() string { return p.Name + "=" + p.Version }

// debName is the file name that apt-get download chooses.
func (p Package) debName(arch string) string {
	return p.Name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + "_" + arch + ".deb"
}

// apt runs apt with a state of its own below dir: settings, sources, lists, cache and status. The host's
// are neither read nor changed; of the caller's environment only proxies pass.
type apt struct {
	dir      string
	suite    string
	mirror   string
	security string // empty: none
	offline  bool
	keyring  string
	want     archive.Expected // but for codename and label
	progress Progress
}

func newApt(o Options) (*apt, error) {
	a := &apt{
		dir: filepath.Join(o.Cache, "apt-"+o.Suite), suite: o.Suite, mirror: debianMirror, security: debianSecurity,
		offline: o.Offline,
		keyring: cmp.Or(o.keyring, debianKeyring), want: archive.Expected{MaxAge: o.MaxReleaseAge}, progress: o.Progress,
	}
	switch {
	case o.Mirror != "" && o.Version != "":
		return nil,
			errors.New("image build: --mirror and --version exclude each other: a version is a state of snapshot.debian.org")
	case o.Mirror != "":
		a.mirror, a.security = o.Mirror, o.SecurityMirror
	case o.Version != "":
		var err error
		if a.want.Snapshot, err = time.Parse(snapshotForm, o.Version); err != nil {
			return nil, fmt.Errorf("image build: version %q: not of the form 20260801T000000Z: %w", o.Version, err)
		}
		a.dir += "-" + o.Version
		a.mirror, a.security = snapshotMirror+o.Version, snapshotSecures+o.Version
	}
	return a, a.prepare()
}

const snapshotForm = "20060102T150405Z"

// prepare makes the directories and writes apt's settings and sources.
func (a *apt) prepare() error {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc", "debs"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return fmt.Errorf("image build: make the package cache: %w", err)
		}
	}
	if _, err := os.Stat(a.keyring); err != nil {
		return fmt.Errorf("image build: %w: install package debian-archive-keyring, which holds the keys that packages are "+
			"checked with", err)
	}
	var sources string
	for _, s := range a.sources() {
		if err := archive.CheckURL(s.address); err != nil {
			return fmt.Errorf("image build: %w", err)
		}
		sources += archive.Source(a.keyring, s.address, s.suite)
	}
	for name, text := range map[string]string{"sources.list": sources, "apt.conf": archive.Config(a.dir, debArch)} {
		if err := os.WriteFile(filepath.Join(a.dir, "etc", name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("image build: write apt's settings: %w", err)
		}
	}
	return nil
}

type source struct{ address, suite, label string }

func (a *apt) sources() []source {
	out := []source{{a.mirror, a.suite, archive.LabelMain}}
	if a.security != "" {
		out = append(out, source{a.security, a.suite + "-security", archive.LabelSecurity})
	}
	return out
}

func (a *apt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = archive.Env(filepath.Join(a.dir, "etc/apt.conf"))
	cmd.Dir = filepath.Join(a.dir, "debs")
	return cmd
}

// lock keeps two builds from writing the same apt state. The returned function releases it.
func (a *apt) lock(ctx context.Context) (func(), error) {
	f, err := os.OpenFile(filepath.Join(a.dir, "build.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("image build: lock the package cache: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		// The goroutine ends when the other build does; the descriptor goes with the process.
		return nil, fmt.Errorf("image build: wait for another build that uses %s: %w", a.dir, ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image build: lock the package cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// update fetches the package index, and checks what it says of itself. pinned says that the caller knows the
// digests of all packages.
func (a *apt) update(ctx context.Context, pinned bool) error {
	want := a.want
	want.Pinned = pinned || a.offline // what earlier builds left is as old as it is
	if !a.offline {
		if err := a.run(ctx, "fetch the package index of "+a.suite, "apt-get", "update"); err != nil {
			return fmt.Errorf("fetch the package index of %s from %s: %w (is the network there? A proxy is taken from the "+
				"environment, "+
				"not from apt's settings; with a filled cache use --offline)", a.suite, a.mirror, err)
		}
	}
	want.Now = time.Now()
	for _, s := range a.sources() {
		want.Codename, want.Label = s.suite, s.label
		if err := a.checkRelease(s, want); err != nil {
			return fmt.Errorf("package index of %s from %s: %w", s.suite, s.address, err)
		}
	}
	return nil
}

// checkRelease checks the index that apt has fetched, or that an earlier build has.
func (a *apt) checkRelease(s source, want archive.Expected) error {
	f, err := os.Open(filepath.Join(a.dir, "lists", archive.ListName(s.address, s.suite)))
	if errors.Is(err, fs.ErrNotExist) && a.offline {
		return fmt.Errorf("no earlier build has fetched it into %s, and --offline forbids fetching it", a.dir)
	}
	if err != nil {
		return fmt.Errorf("apt has no signed InRelease file of it: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxRelease+1))
	if err != nil {
		return err
	}
	if len(b) > maxRelease {
		return fmt.Errorf("its InRelease file has more than %d bytes", maxRelease)
	}
	r, err := archive.ParseRelease(b)
	if err != nil {
		return err
	}
	return r.Check(want)
}

// run executes an apt command and reports its download progress.
func (a *apt) run(ctx context.Context, title, name string, args ...string) (err error) {
	task := a.progress.Step(title, 100)
	defer func() { task.Done(err) }()
	status, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = status.Close() }()
	cmd := a.command(ctx, name, append([]string{"-q", "-o", "APT::Status-Fd=3"}, args...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &said, []*os.File{w}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("%w (coco guest build needs apt)", err), w.Close())
	}
	_ = w.Close()
	for sc := bufio.NewScanner(status); sc.Scan(); {
		// "dlstatus:<item>:<percent>:<text>"
		if f := strings.SplitN(sc.Text(), ":", 4); len(f) == 4 && f[0] == "dlstatus" {
			if pc, err := strconv.ParseFloat(f[2], 64); err == nil {
				task.Set(int64(pc))
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, errorLines(said.Bytes()))
	}
	return nil
}

// errorLines picks apt's own error lines out of its output.
func errorLines(b []byte) string {
	var out []string
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "Err:") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	if len(out) == 0 {
		return lastLines(b, 3)
	}
	return strings.Join(out[:min(len(out), 4)], "; ")
}

// resolve finds the candidate version of a package.
func (a *apt) resolve(ctx context.Context, arg string) (Package, error) {
	out, err := a.command(ctx, "apt-cache", "show", "--no-all-versions", "--", arg).Output()
	if err != nil {
		hint := ""
		if a.offline {
			hint = " (--offline knows only what earlier builds left in " + a.dir + ")"
		}
		return Package{}, fmt.Errorf("find package %s in %s of %s: %w%s", arg, a.suite, a.mirror, withStderr(err), hint)
	}
	p, err := parseShow(out)
	if err != nil {
		return Package{}, fmt.Errorf("find package %s in %s of %s: %w", arg, a.suite, a.mirror, err)
	}
	return p, nil
}

// parseShow reads the first paragraph of apt-cache show.
func parseShow(b []byte) (Package, error) {
	var p Package
	first, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n\n")
	for line := range strings.SplitSeq(first, "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "SHA256":
			p.SHA256 = value
		case "Depends":
			p.depends = dependNames(value)
		case "Size":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return Package{}, fmt.Errorf("size %q: %w", value, err)
			}
			p.Size = n
		}
	}
	if p.Name == "" || p.Version == "" || len(p.SHA256) != 2*sha256.Size || p.Size <= 0 {
		return Package{}, errors.New("its record has no name, version, size or SHA-256")
	}
	return p, nil
}

// cached returns the path of a package in the cache, checked against its digest, or "".
func (a *apt) cached(p Package) (string, error) {
	for _, arch := range []string{debArch, "all"} {
		file := filepath.Join(a.dir, "debs", p.debName(arch))
		sum, err := fileSHA256(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", err
		case sum == p.SHA256:
			return file, nil
		}
		if err := os.Remove(file); err != nil { // a torn or foreign file: fetch it again
			return "", err
		}
	}
	return "", nil
}

// fetch makes sure that the packages are in the cache and returns their paths in the same order.
func (a *apt) fetch(ctx context.Context, pkgs ...Package) ([]string, error) {
	var missing []string
	for _, p := range pkgs {
		file, err := a.cached(p)
		if err != nil {
			return nil, fmt.Errorf("look up package %s in the cache: %w", p, err)
		}
		if file == "" {
			missing = append(missing, p.String())
		}
	}
	if len(missing) > 0 {
		if a.offline {
			return nil, fmt.Errorf("packages %s are not in the cache %s and --offline forbids fetching them",
				strings.Join(missing, ", "), a.dir)
		}
		if err := a.run(ctx, "fetch "+strings.Join(missing, " "), "apt-get",
			append([]string{"download"}, missing...)...); err != nil {
			return nil, fmt.Errorf("fetch packages %s from %s: %w (a version that the archive has dropped needs a lock of "+
				"today's versions, --renew-lock, or --mirror with an archive that still has it)",
				strings.Join(missing, ", "), a.mirror, err)
		}
	}
	files := make([]string, len(pkgs))
	for i, p := range pkgs {
		file, err := a.cached(p)
		if err != nil {
			return nil, fmt.Errorf("look up package %s in the cache: %w", p, err)
		}
		if file == "" {
			return nil, fmt.Errorf("package %s: what was fetched has not the SHA-256 %s that it should have", p, p.SHA256)
		}
		files[i] = file
	}
	return files, nil
}

func fileSHA256(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
