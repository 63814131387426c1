// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qtest

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// fakeName is the name under which this test's program is a QEMU.
const fakeName = "fake-qemu"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fakeName {
		fakeQEMU()
		return
	}
	os.Exit(m.Run())
}

// fakeQEMU answers on descriptor 3 and notes beside itself that it ran. Its argument is the content of a table.
func fakeQEMU() {
	log, err := os.OpenFile(os.Args[0]+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		os.Exit(2)
	}
	_, _ = log.WriteString("run\n") // a count that is missing fails the test
	conn := os.NewFile(3, "qtest")
	m := newMachine(map[string][]byte{ACPI: []byte(os.Args[1]), RSDP: []byte("rsdp")})
	for in := bufio.NewScanner(conn); in.Scan(); {
		_, _ = m.Write(append(in.Bytes(), '\n'))
		if _, err := io.Copy(conn, &m.out); err != nil {
			return
		}
	}
}

// fake installs this test's program as a QEMU.
func fake(t *testing.T) (path string, runs func() int) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), fakeName)
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return path, func() int { b, _ := os.ReadFile(path + ".log"); return bytes.Count(b, []byte("\n")) }
}

func TestTablesAreCachedByContent(t *testing.T) {
	bin, runs := fake(t)
	c := Cache{Dir: t.TempDir() + "/cache"}
	read := func(table string, f Firmware) map[string][]byte {
		t.Helper()
		files, err := c.Read(t.Context(), []string{bin, table}, f, RSDP, ACPI)
		if err != nil || string(files[ACPI]) != table {
			t.Fatalf("Read = %v, %v", files, err)
		}
		return files
	}
	fw := OVMF(202508, 46)
	first := read("tables", fw)
	if again := read("tables", fw); !maps.EqualFunc(first, again, bytes.Equal) || runs() != 1 {
		t.Errorf("%d runs for the same question, or other answers", runs())
	}
	if read("tables", OVMF(202302, 46)); runs() != 2 {
		t.Errorf("%d runs for another firmware, want 2 in all", runs())
	}
	if read("other", fw); runs() != 3 {
		t.Errorf("%d runs with other arguments, want 3 in all", runs())
	}
	entries, _ := os.ReadDir(c.Dir)
	for _, e := range entries {
		path := c.Dir + "/" + e.Name()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if read("tables", fw); runs() != 4 {
		t.Errorf("%d runs with a damaged cache, want 4 in all", runs())
	}
	f, err := os.OpenFile(bin, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("another build")
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	if read("tables", fw); runs() != 5 {
		t.Errorf("%d runs with another binary, want 5 in all", runs())
	}
}

// A wrapper script stays the same when the QEMU that it executes is replaced.
func TestTablesOfAWrapperScriptAreNotKept(t *testing.T) {
	bin, runs := fake(t)
	wrapper := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+bin+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Cache{Dir: t.TempDir() + "/cache"}
	for n := range 2 {
		files, err := c.Read(t.Context(), []string{wrapper, "tables"}, OVMF(202508, 46), ACPI)
		if err != nil || string(files[ACPI]) != "tables" || runs() != n+1 {
			t.Errorf("Read = %v, %v after %d runs, want the tables of run %d", files, err, runs(), n+1)
		}
	}
	if entries, err := os.ReadDir(c.Dir); err == nil && len(entries) > 0 {
		t.Errorf("%d entries are kept for a wrapper script", len(entries))
	}
}
