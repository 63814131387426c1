// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package harness brings up the environment of the integration tests and the benchmark: a private
// containerd of a chosen version with its own root, state and socket, our shim as `make stage`
// installed it, and a busybox image. It also takes snapshots of everything that a pod may leave
// behind on the host, so that a test can prove that nothing was left.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testimage"
)

// Runtime is the name that containerd resolves to our shim.
const Runtime = "io.containerd.coco.v2"

// RuncRuntime is the baseline.
const RuncRuntime = "io.containerd.runc.v2"

// Image is the reference under which every daemon has the busybox image.
const Image = "docker.io/library/busybox:coco"

// LayeredImage is busybox with two more layers: one adds and replaces files, one deletes.
const LayeredImage = "docker.io/library/layered:coco"

// Root returns the repository's root.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Prefix is where `make stage` installed coco: $COCO_PREFIX or dist/prefix.
func Prefix() string {
	if p := os.Getenv("COCO_PREFIX"); p != "" {
		return p
	}
	return filepath.Join(Root(), "dist", "prefix")
}

// Cache is where `tests/setup.sh` puts other versions of containerd and the test suites.
func Cache() string {
	if p := os.Getenv("COCO_TEST_CACHE"); p != "" {
		return p
	}
	return "/var/cache/coco/test"
}

// ErrAbsent says that something the tests need is not on this machine; the text says how to get it.
var ErrAbsent = errors.New("not on this machine")

// Binaries returns the directory that holds containerd and ctr of a version: "1.6" is the system's
// own, others come from tests/setup.sh.
func Binaries(version string) (string, error) {
	if version == "1.6" || version == "system" {
		p, err := exec.LookPath("containerd")
		if err != nil {
			return "", fmt.Errorf("containerd: %w: apt-get install containerd", ErrAbsent)
		}
		return filepath.Dir(p), nil
	}
	dir := filepath.Join(Cache(), "containerd-"+version, "bin")
	if _, err := os.Stat(filepath.Join(dir, "containerd")); err != nil {
		return "", fmt.Errorf("containerd %s: %w: tests/setup.sh containerd-%s", version, ErrAbsent, version)
	}
	return dir, nil
}

// Daemon is a private containerd.
type Daemon struct {
	Version string
	Dir     string // root, state, socket and log live below
	Bin     string // directory of containerd and ctr
	Name    string // of the process, at most 15 bytes, for suites that look the daemon up by it; "containerd" by default
	cmd     *exec.Cmd
	exited  chan struct{}
}

// Socket is the daemon's gRPC address.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "c.sock") }

// Log is the daemon's log file.
func (d *Daemon) Log() string { return filepath.Join(d.Dir, "containerd.log") }

// Start brings up a daemon below dir, without CRI, and imports the images.
func Start(ctx context.Context, version, dir string) (*Daemon, error) {
	d := &Daemon{Version: version, Dir: dir}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), d.Socket(), filepath.Join(dir, "opt"))
	if err := d.start(ctx, config); err != nil {
		return nil, err
	}
	if err := d.importImages(); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// start finds the binaries, writes the configuration and starts the daemon.
func (d *Daemon) start(ctx context.Context, config string) (err error) {
	if d.Bin, err = Binaries(d.Version); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(Prefix(), "bin", "containerd-shim-coco-v2")); err != nil {
		return fmt.Errorf("coco's shim: %w: make stage", ErrAbsent)
	}
	if err := os.WriteFile(filepath.Join(d.Dir, "config.toml"), []byte(config), 0o600); err != nil {
		return err
	}
	return d.Restart(ctx)
}

// Restart starts the daemon process; after Kill it comes back on the same state.
func (d *Daemon) Restart(ctx context.Context) error {
	log, err := os.OpenFile(d.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	_ = os.Remove(d.Socket())
	binary, err := d.binary()
	if err != nil {
		return err
	}
	config := os.Getenv(configs.EnvFile)
	if config == "" {
		if config, err = WriteConfig(d.Dir); err != nil {
			return err
		}
	}
	cmd := exec.Command(binary, "-c", filepath.Join(d.Dir, "config.toml"), "-l", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+d.path(), configs.EnvFile+"="+config)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd %s: %w", d.Version, err)
	}
	d.cmd, d.exited = cmd, make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(cmd, d.exited)
	return d.waitReady(ctx)
}

// binary is containerd, or a link to it of another name.
func (d *Daemon) binary() (string, error) {
	real := filepath.Join(d.Bin, "containerd")
	if d.Name == "" {
		return real, nil
	}
	link := filepath.Join(d.Dir, d.Name)
	if err := os.Symlink(real, link); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return link, nil
}

// KeepRunning starts the daemon again whenever it ends, as a service manager does, until ctx ends.
func (d *Daemon) KeepRunning(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.exited:
			if err := d.Restart(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
	}
}

// waitReady asks for the version until the daemon answers: a client has no event to wait for.
func (d *Daemon) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if r := d.Ctr(ctx, "version"); r.Err == nil && r.Code == 0 {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("containerd %s ended at start; see %s", d.Version, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("containerd %s did not answer: %w; see %s", d.Version, ctx.Err(), d.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *Daemon) path() string {
	return strings.Join([]string{filepath.Join(Prefix(), "bin"), d.Bin, "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":")
}

func (d *Daemon) importImages() error {
	base, err := testimage.Busybox("")
	if err != nil {
		return err
	}
	layered := base.WithLayer(
		testimage.File{Path: "layer/added", Mode: 0o644, Data: []byte("second layer\n")},
		testimage.File{
			Path: "etc/passwd", Mode: 0o644,
			Data: []byte("root:x:0:0:replaced:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n"),
		},
	).WithLayer(
		testimage.File{Path: "etc/.wh.group", Mode: 0o644},
		testimage.File{Path: "layer/top", Mode: 0o600, Data: []byte("third layer\n"), UID: 1000, GID: 1000},
	)
	for ref, im := range map[string]testimage.Image{Image: base, LayeredImage: layered} {
		file := filepath.Join(d.Dir, "image.tar")
		if err := im.WriteFile(file, ref); err != nil {
			return err
		}
		if r := d.Ctr(context.Background(), "images", "import", file); r.Code != 0 {
			return fmt.Errorf("import %s: %s", ref, r.Stderr)
		}
		_ = os.Remove(file)
	}
	return nil
}

// Kill ends the daemon with SIGKILL, as a crash would, and waits for its end.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// Stop ends the daemon with SIGTERM and waits; it insists after ten seconds.
func (d *Daemon) Stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
		return nil
	case <-time.After(10 * time.Second):
		d.Kill()
		return fmt.Errorf("containerd %s ignored SIGTERM", d.Version)
	}
}

// Result is what a ctr command did.
type Result struct {
	Stdout, Stderr string
	Code           int
	Err            error // the command could not be run or was cut off
	Took           time.Duration
}

// Command prepares a ctr command against the daemon.
func (d *Daemon) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.Bin, "ctr"), append([]string{"-a", d.Socket()}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+d.path(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Ctr runs a ctr command to its end.
func (d *Daemon) Ctr(ctx context.Context, args ...string) Result {
	return d.CtrInput(ctx, nil, args...)
}

// CtrInput is Ctr with something on standard input.
func (d *Daemon) CtrInput(ctx context.Context, stdin []byte, args ...string) Result {
	cmd := d.Command(ctx, args...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	start := time.Now()
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errb.String(), Took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		r.Code = exit.ExitCode()
	default:
		r.Code, r.Err = -1, err
	}
	return r
}
