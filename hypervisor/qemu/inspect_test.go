// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
)

func TestInspectAsksTheBinary(t *testing.T) {
	testvm.Need(t, testvm.QEMU)
	info, err := Inspect(t.Context(), testDriver(t).opts.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.Version.AtLeast(7, 2) || !slices.Contains(info.Objects, "memory-backend-memfd") {
		t.Errorf("Inspect() = %+v, want a version from 7.2 and its objects", info)
	}
	t.Log(info.Version)
}

func TestInspectOfSomethingElseSaysSo(t *testing.T) {
	for path, want := range map[string]string{
		"/nonexistent/qemu": "start /nonexistent/qemu: fork/exec /nonexistent/qemu: no such file or directory",
		"/bin/cat":          "it says: /bin/cat: invalid option",
	} {
		if _, err := Inspect(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Inspect(%s) = %v, want %q", path, err, want)
		}
	}
}
