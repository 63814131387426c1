// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"bytes"
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

	"golang.org/x/sys/unix"
)

const (
	debianKeyring   = "/usr/share/keyrings/debian-archive-keyring.gpg"
	debianMirror    = "http://deb.debian.org/debian"
	debianSecurity  = "http://deb.debian.org/debian-security"
	snapshotMirror  = "http://snapshot.debian.org/archive/debian/"
	snapshotSecures = "http://snapshot.debian.org/archive/debian-security/"
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

// apt runs apt with a state of its own below dir: sources, lists, cache and status. The host's
// packages and sources are neither read nor changed; its network settings (proxies) are honoured.
type apt struct {
	dir      string
	suite    string
	mirror   string
	security string // empty: none
	offline  bool
	progress Progress
}

func newApt(o Options) (*apt, error) {
	a := &apt{dir: filepath.Join(o.Cache, "apt-"+o.Suite), suite: o.Suite, mirror: debianMirror, security: debianSecurity, offline: o.Offline, progress: o.Progress}
	switch {
	case o.Mirror != "" && o.Version != "":
		return nil, errors.New("image build: --mirror and --version exclude each other: a version is a state of snapshot.debian.org")
	case o.Mirror != "":
		a.mirror, a.security = o.Mirror, o.SecurityMirror
	case o.Version != "":
		a.dir += "-" + o.Version
		a.mirror, a.security = snapshotMirror+o.Version, snapshotSecures+o.Version
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc", "debs"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("image build: make the package cache: %w", err)
		}
	}
	return a, a.writeSources()
}

func (a *apt) writeSources() error {
	if _, err := os.Stat(debianKeyring); err != nil {
		return fmt.Errorf("image build: %w: install package debian-archive-keyring, which holds the keys that packages are checked with", err)
	}
	opts := "signed-by=" + debianKeyring
	if strings.HasPrefix(a.mirror, snapshotMirror) {
		opts += " check-valid-until=no" // old indexes have expired; their signatures have not
	}
	text := fmt.Sprintf("deb [%s] %s %s main\n", opts, a.mirror, a.suite)
	if a.security != "" {
		text += fmt.Sprintf("deb [%s] %s %s-security main\n", opts, a.security, a.suite)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "etc/sources.list"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("image build: write the package sources: %w", err)
	}
	return nil
}

func (a *apt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	opts := []string{
		"-o", "Dir::Etc::sourcelist=" + a.dir + "/etc/sources.list",
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::Etc::preferences=/dev/null",
		"-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "Dir::State::lists=" + a.dir + "/lists",
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::State::extended_states=/dev/null",
		"-o", "Dir::Cache=" + a.dir + "/cache",
		"-o", "APT::Architecture=" + debArch,
		"-o", "APT::Architectures::=" + debArch,
		"-o", "APT::Sandbox::User=root",
		"-o", "APT::Update::Error-Mode=any",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}
	cmd := exec.CommandContext(ctx, name, append(opts, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
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

// update fetches the package index.
func (a *apt) update(ctx context.Context) error {
	if a.offline {
		return nil
	}
	err := a.run(ctx, "fetch the package index of "+a.suite, "apt-get", "update")
	if err != nil {
		return fmt.Errorf("fetch the package index of %s from %s: %w (is the network there? with a filled cache use --offline)", a.suite, a.mirror, err)
	}
	return nil
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
		return errors.Join(fmt.Errorf("%w (coco image build needs apt)", err), w.Close())
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
			return nil, fmt.Errorf("packages %s are not in the cache %s and --offline forbids fetching them", strings.Join(missing, ", "), a.dir)
		}
		if err := a.run(ctx, "fetch "+strings.Join(missing, " "), "apt-get", append([]string{"download"}, missing...)...); err != nil {
			return nil, fmt.Errorf("fetch packages %s from %s: %w (a version that the archive has dropped needs a new lock file, or --mirror with an archive that has it)", strings.Join(missing, ", "), a.mirror, err)
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
