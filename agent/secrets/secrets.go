// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package secrets gets the secrets of containers from the pod's key broker, before the containers are created.
//
// Which ones a container gets stands in its policy. The program coco-trust, a part of the guest image, talks with the
// broker; the agent starts it when the first secret is needed and asks it over a socket pair (package trust/wire). A
// secret becomes a file on a tmpfs that the container alone has, or a variable of its first process. An error
// fails the container's creation, with the code, the resource and the broker's reason: a container never runs
// with an empty or missing secret. Files whose policy says so are renewed later, each in one step. Secrets are in no
// error and no log.
package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// Config has what a Store depends on.
type Config struct {
	// Of lists the secrets of a container by its id; engine.Engine's method. nil: no container has any.
	Of func(id string) []policy.Secret
	// Name returns the name in the policy of a container that may ask for anything, else ""; nil: none may.
	Name func(id string) string
	// Setup tells coco-trust about this guest. Its Initdata is empty if initdata names no broker.
	Setup wire.Setup
	// Open mounts a part of the guest image and returns its directory.
	Open func(ctx context.Context, part string) (dir string, err error)
	// Spawn starts a program; the reaper's method.
	Spawn func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error)
	// Dir is the directory for files of secrets, to which no request of the host reaches.
	Dir string
	Log *slog.Logger // nil: none
}

// Store gets secrets. Its methods may be called at the same time.
type Store struct {
	cfg   Config
	mount func(dir string) error // puts a tmpfs on a directory; replaced in tests

	turn chan *helper // has the running coco-trust, or nil; its holder talks with it

	life context.Context // until Close, of renewals
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	way      *net.UnixConn       // guarded by mu; for connections to the workload API, to the last coco-trust
	renewals map[string]*renewal // guarded by mu; by the containers' ids
}

// New makes a Store. Close ends it.
func New(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, mount: tmpfs, turn: make(chan *helper, 1)}
	s.life, s.end = context.WithCancel(context.Background())
	s.turn <- nil
	return s
}

// tmpfsSize bounds the files of one container's secrets: 64 of 2 MiB, and one that is about to replace another.
const tmpfsSize = "size=132m,mode=0700"

func tmpfs(dir string) error {
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, tmpfsSize)
}

// Add gets the secrets of a container. It adds variables to the process, replaces sealed texts in it and the sources of
// mounts that have some, and returns the mounts of files. u removes the files.
func (s *Store) Add(ctx context.Context, id string, spec *specs.Spec, u *undo.Stack) (mounts []specs.Mount, err error) {
	if s.cfg.Of == nil {
		return nil, s.unopened(spec.Process.Env)
	}
	list := s.cfg.Of(id)
	if len(list) == 0 {
		return nil, nil
	}
	b := &batch{Store: s, id: id, dir: filepath.Join(s.cfg.Dir, id), spec: spec, undo: u, got: map[string][]byte{}}
	defer b.wipe()
	for _, x := range list {
		if err = b.fetch(ctx, x); err != nil {
			return nil, fmt.Errorf("secret %s: %w", x.Resource, err)
		}
	}
	for i, x := range list {
		if err = b.place(ctx, strconv.Itoa(i), x); err != nil {
			return nil, fmt.Errorf("secret %s: %w", x.Resource, err)
		}
	}
	b.renewLater()
	return b.mounts, nil
}

// batch is the secrets of one container.
type batch struct {
	*Store
	id, dir string // of the container; of its files
	spec    *specs.Spec
	undo    *undo.Stack
	got     map[string][]byte // resources
	mounts  []specs.Mount     // of files
	copies  map[int]string    // directories or files that replace the sources of mounts, by the mounts' indices
	dirs    map[string]string // directories with files that are renewed, by their paths in the container
	renewed []renewed
}

func (b *batch) wipe() {
	for _, secret := range b.got {
		clear(secret)
	}
}

// fetch gets a resource that is itself a secret.
func (b *batch) fetch(ctx context.Context, x policy.Secret) (err error) {
	if x.Sealed || b.got[x.Resource] != nil {
		return nil
	}
	b.got[x.Resource], err = b.get(ctx, wire.Request{Resource: x.Resource})
	return err
}

// place puts a secret where the policy says. name is that of its file.
func (b *batch) place(ctx context.Context, name string, x policy.Secret) error {
	switch {
	case x.Sealed && x.Env != "":
		return b.openVariable(ctx, x)
	case x.Sealed:
		return b.openFile(ctx, x)
	case x.Env != "":
		return addVariable(b.spec.Process, x.Env, b.got[x.Resource])
	case x.Renew != "":
		return b.addRenewed(x)
	}
	m, err := b.addFile(b.dir, name, x, b.got[x.Resource], b.spec.Process.User, b.undo)
	if err == nil {
		b.mounts = append(b.mounts, m)
	}
	return err
}

// addVariable adds a variable.
func addVariable(p *specs.Process, name string, secret []byte) error {
	if err := checkVariable(name, secret); err != nil {
		return err
	}
	p.Env = append(p.Env, name+"="+string(secret))
	return nil
}

// checkVariable refuses a secret that is no text: a variable's value goes through JSON and a list of C strings.
func checkVariable(name string, secret []byte) error {
	why := ""
	switch {
	case bytes.IndexByte(secret, 0) >= 0:
		why = "the secret has a zero byte"
	case !utf8.Valid(secret):
		why = "the secret is no UTF-8 text"
	default:
		return nil
	}
	return fmt.Errorf("variable %s: %s, so it cannot be a variable; use a file: %w", name, why,
		errdefs.ErrFailedPrecondition)
}

// addFile writes a file and returns its mount. dir is the container's directory, which the first file makes.
func (s *Store) addFile(dir, name string, x policy.Secret, secret []byte, owner specs.User, u *undo.Stack,
) (m specs.Mount, err error) {
	if err := s.makeDir(dir, u); err != nil {
		return m, err
	}
	path := filepath.Join(dir, name)
	return mountOn(x.File, path), writeFile(path, x, secret, owner)
}

// mountOn shows a file or directory of the guest to a container.
func mountOn(destination, source string) specs.Mount {
	return specs.Mount{
		Destination: destination, Type: "bind", Source: source,
		Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
	}
}

// writeFile writes a file that is not there yet.
func writeFile(path string, x policy.Secret, secret []byte, owner specs.User) error {
	octal := x.Mode
	if octal == "" {
		octal = policy.SecretMode
	}
	mode, err := strconv.ParseUint(octal, 8, 9)
	if err != nil {
		return err // the policy's own checks came before
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(secret)
	return errors.Join(err, f.Chown(int(owner.UID), int(owner.GID)), f.Chmod(os.FileMode(mode)), f.Close())
}

// makeDir makes the directory of a container's files: a tmpfs, so that they are in the guest's memory whatever lies
// below. They go with it.
func (s *Store) makeDir(dir string, u *undo.Stack) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil // of an earlier file: the undo of the last container has removed that one's
	}
	if err != nil {
		return err
	}
	u.Push("remove "+dir, func(context.Context) error { return os.Remove(dir) })
	if err := s.mount(dir); err != nil {
		return fmt.Errorf("memory for files: %w", err)
	}
	u.Push("unmount "+dir, func(context.Context) error {
		return unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	})
	return nil
}

// classes of failures, by their codes.
var classes = map[string]error{
	"unavailable": errdefs.ErrUnavailable, "untrusted": errdefs.ErrPermissionDenied,
	"refused": errdefs.ErrPermissionDenied, "denied": errdefs.ErrPermissionDenied, "not-found": errdefs.ErrNotFound,
}

// Get gets a resource of the pod's key broker for the guest itself.
func (s *Store) Get(ctx context.Context, resource string) ([]byte, error) {
	return s.get(ctx, wire.Request{Resource: resource})
}

// get asks coco-trust for a secret. One that has failed in the middle is ended; the next call starts another.
func (s *Store) get(ctx context.Context, req wire.Request) (_ []byte, err error) {
	if s.cfg.Setup.Initdata == "" {
		return nil, fmt.Errorf("[%s] initdata names no key broker: it has neither aa.toml nor cdh.toml: %w", wire.Config,
			errdefs.ErrFailedPrecondition)
	}
	var h *helper
	select {
	case h = <-s.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { s.turn <- h }()
	if h == nil {
		if h, err = s.start(ctx); err != nil {
			return nil, err
		}
	}
	var a wire.Answer
	if a, err = h.ask(ctx, req); err != nil {
		h.end()
		h = nil
		return nil, err
	}
	switch {
	case a.Error != nil:
		class := classes[a.Error.Code]
		if class == nil {
			class = errdefs.ErrFailedPrecondition
		}
		return nil, fmt.Errorf("%w: %w", a.Error, class)
	case len(a.Secret) == 0:
		return nil, fmt.Errorf("coco-trust has answered with nothing: %w", errdefs.ErrInternal)
	}
	return a.Secret, nil
}

// Close ends renewals, and coco-trust, if it runs. Secrets cannot be got any more.
func (s *Store) Close() {
	s.end()
	if h := <-s.turn; h != nil {
		h.end()
	}
	s.wg.Wait()
}
