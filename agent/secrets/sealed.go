// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// maxSealed bounds a sealed text, as package attestation/sealed does.
const maxSealed = 1 << 20

// maxEntries bounds the files of a mount that is copied.
const maxEntries = 4096

// failed is an error with a code, for a place at which there is no sealed text, or must not be one.
func failed(code, format string, args ...any) error {
	return fmt.Errorf("[%s] sealed secret: %w: %w", code, fmt.Errorf(format, args...), errdefs.ErrFailedPrecondition)
}

// missing is the code for a place where there is no text.
const missing = "missing"

// unopened refuses sealed texts in the variables of a pod that has a key broker, and no policy that says which resource
// a text may open: the process would take the text for the secret. In a pod without a broker nobody expects that a text
// is opened.
func (s *Store) unopened(env []string) error {
	if s.cfg.Setup.Initdata == "" {
		return nil
	}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if policy.HasSyntax(policy.TypeSealed, value) {
			return failed("no-policy", "variable %.200q has a sealed text, and only a %s in the pod's initdata says what "+
				"it may open", name, policy.FileName)
		}
	}
	return nil
}

// open has coco-trust open a sealed text. A request without a text would ask for the resource itself, without any
// signature.
func (b *batch) open(ctx context.Context, x policy.Secret, text string) ([]byte, error) {
	if text == "" {
		return nil, failed(missing, "it is empty")
	}
	return b.get(ctx, wire.Request{Resource: x.Resource, Sealed: text, Container: b.id})
}

// openVariable replaces the sealed text of a variable by its secret.
func (b *batch) openVariable(ctx context.Context, x policy.Secret) error {
	env := b.spec.Process.Env
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, x.Env+"=") })
	if i < 0 || len(env[i]) == len(x.Env)+1 {
		return failed(missing, "variable %s is not there or is empty", x.Env)
	}
	secret, err := b.open(ctx, x, env[i][len(x.Env)+1:])
	if err != nil {
		return fmt.Errorf("variable %s: %w", x.Env, err)
	}
	defer clear(secret)
	if err := checkVariable(x.Env, secret); err != nil {
		return err
	}
	env[i] = x.Env + "=" + string(secret)
	return nil
}

// openFile replaces the sealed text of a file by its secret. The file lies in a mount whose source the host has copied
// into the guest. The container gets a copy of the source, in the guest's memory, with the secret in it. Later
// updates of the source do not reach this container, and other containers keep the sealed text.
func (b *batch) openFile(ctx context.Context, x policy.Secret) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("file %s: %w", x.File, err)
		}
	}()
	i, rel := mountOf(b.spec.Mounts, x.File)
	if i < 0 {
		return failed(missing, "no mount of the container has it")
	}
	at, err := b.copyMount(i)
	if err != nil {
		return err
	}
	dir := at
	if rel == "." {
		dir, rel = filepath.Split(at)
	}
	f, err := openBelow(dir, rel)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSealed+1))
	if err != nil {
		return err
	}
	secret, err := b.open(ctx, x, strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return err
	}
	defer clear(secret)
	return os.WriteFile(beneath.Proc(f), secret, 0)
}

// openBelow opens a regular file of a copied mount. Links of the mount lead to files in it, or nowhere.
func openBelow(dir, rel string) (*os.File, error) {
	top, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	fd, err := unix.Openat2(int(top.Fd()), rel, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, failed(missing, "the host has not brought it")
	case errors.Is(err, unix.EXDEV):
		return nil, failed(missing, "the host has brought a link that leads out of the mount")
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// mountOf finds the mount that shows a file, the last one of the nearest, and the file's path in it.
func mountOf(mounts []specs.Mount, file string) (i int, rel string) {
	i, length := -1, 0
	for j, m := range mounts {
		at := path.Clean(m.Destination)
		if file == at && len(at) >= length {
			i, rel, length = j, ".", len(at)
		} else if r, ok := strings.CutPrefix(file, at+"/"); ok && len(at) >= length {
			i, rel, length = j, r, len(at)
		}
	}
	return i, rel
}

// copyMount copies the source of a mount into the guest's memory, once, and makes the copy the source.
func (b *batch) copyMount(i int) (string, error) {
	if at, ok := b.copies[i]; ok {
		return at, nil
	}
	if err := b.makeDir(b.dir, b.undo); err != nil {
		return "", err
	}
	m := &b.spec.Mounts[i]
	at := filepath.Join(b.dir, "mount"+strconv.Itoa(i))
	if err := copyTree(m.Source, at); err != nil {
		return "", fmt.Errorf("copy the mount on %s: %w", m.Destination, err)
	}
	m.Source = at
	if b.copies == nil {
		b.copies = map[int]string{}
	}
	b.copies[i] = at
	return at, nil
}

// copyTree copies a file, link or directory, with owners, modes and what is below it. Containers may share the original
// and change it meanwhile: each step opens one name in an open directory and follows no link, so nothing leads out.
func copyTree(from, to string) error {
	dir, err := os.OpenFile(filepath.Dir(from), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	entries := 0
	return copyEntry(dir, filepath.Base(from), to, &entries)
}

// copyEntry copies one name of a directory.
func copyEntry(dir *os.File, name, to string, entries *int) error {
	if *entries++; *entries > maxEntries {
		return fmt.Errorf("it has more than %d files: %w", maxEntries, errdefs.ErrFailedPrecondition)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, rerr := unix.Readlinkat(fd, "", target)
		if err = rerr; err == nil {
			err = os.Symlink(string(target[:n]), to)
		}
	case unix.S_IFDIR:
		err = copyDir(f, to, entries)
	default: // Reopen refuses pipes, sockets and devices
		err = copyFile(f, to)
	}
	if err == nil {
		err = os.Lchown(to, int(st.Uid), int(st.Gid))
	}
	if err == nil && kind != unix.S_IFLNK {
		err = unix.Chmod(to, st.Mode&0o7777)
	}
	return err
}

func copyDir(from *os.File, to string, entries *int) error {
	fd, err := unix.Openat(int(from.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), from.Name())
	defer dir.Close()
	names, err := dir.Readdirnames(maxEntries + 1)
	if errors.Is(err, io.EOF) { // it is empty
		err = nil
	}
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	for _, name := range names {
		if err != nil {
			break
		}
		err = copyEntry(dir, name, to+"/"+name, entries)
	}
	return err
}

func copyFile(from *os.File, to string) error {
	in, err := beneath.Reopen(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
