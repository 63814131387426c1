// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

func init() { register(contract.DriverEphemeral, driver{mount: (*Manager).mountEphemeral}) }

// mountEphemeral mounts guest memory: tmpfs or huge pages.
func (m *Manager) mountEphemeral(_ context.Context, point string, mt *mounted, opts options) error {
	gid, hasGID, err := opts.takeID("fsgid")
	if err != nil {
		return invalid(err)
	}
	var known []string
	fstype := mt.storage.GetFstype()
	switch fstype {
	case "tmpfs":
		known = []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "inode32", "inode64", "noswap"}
	case "hugetlbfs":
		known = []string{"size", "mode", "uid", "gid", "nr_inodes", "min_size", "pagesize"}
	default:
		return invalid(fmt.Errorf("file system %.40q is not memory; supported are tmpfs and hugetlbfs", fstype))
	}
	for _, o := range opts.data {
		if name, _, _ := strings.Cut(o, "="); !slices.Contains(known, name) {
			return invalid(fmt.Errorf("unknown option %.100q for %s", o, fstype))
		}
	}
	if fstype == "hugetlbfs" {
		if err := m.reserveHugePages(mt, opts); err != nil {
			return err
		}
	}
	if err := m.mountAt(point, mt, opts.fileSystem(fstype, fstype)); err != nil {
		return err
	}
	if !hasGID {
		return nil
	}
	dir, err := m.dir.Open(point)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	return setModeAndGroup(dir, st.Mode&0o7777, gid, true)
}

// reserveHugePages makes the kernel set pages aside for a hugetlbfs of a given size.
func (m *Manager) reserveHugePages(mt *mounted, opts options) error {
	ps, _, err := opts.take("pagesize")
	if err != nil {
		return invalid(err)
	}
	sz, _, err := opts.take("size")
	if err != nil {
		return invalid(err)
	}
	page, perr := parseSize(ps)
	size, serr := parseSize(sz)
	if err := errors.Join(perr, serr); err != nil {
		return invalid(fmt.Errorf("hugetlbfs needs pagesize= and size=: %w", err))
	}
	if page < 4096 || size%page != 0 {
		return invalid(fmt.Errorf("size %d is not a number of pages of %d bytes", size, page))
	}
	pages := size / page
	if err := m.addHugePages(page, int64(pages)); err != nil { //nolint:gosec // below 2^52
		return err
	}
	mt.undo.Push("free huge pages", func(context.Context) error { return m.addHugePages(page, -int64(pages)) }) //nolint:gosec // likewise
	return nil
}

// addHugePages changes how many pages the kernel keeps, and checks that it could.
func (m *Manager) addHugePages(page uint64, delta int64) error {
	file := filepath.Join(m.sys, "kernel/mm/hugepages", fmt.Sprintf("hugepages-%dkB", page>>10), "nr_hugepages")
	m.mu.Lock() // the file is read, changed and written
	defer m.mu.Unlock()
	have, err := readInt(file)
	if err != nil {
		return fmt.Errorf("huge pages of %d KiB: %w", page>>10, err)
	}
	want := max(have+delta, 0)
	if err := os.WriteFile(file, []byte(strconv.FormatInt(want, 10)), 0); err != nil {
		return fmt.Errorf("huge pages of %d KiB: %w", page>>10, err)
	}
	got, err := readInt(file)
	if err != nil || delta < 0 || got >= want {
		return err
	}
	_ = os.WriteFile(file, []byte(strconv.FormatInt(have, 10)), 0) // restore the old number
	return fmt.Errorf("guest memory has room for %d of %d huge pages of %d KiB", got-have, delta, page>>10)
}

func readInt(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
