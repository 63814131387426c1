// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ext4

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/testvm"
)

// e2fsck is the independent reader: it must find nothing but that there is no lost+found.
func TestE2fsckFindsNothing(t *testing.T) {
	testvm.Need(t, testvm.E2fsck)
	fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint64{
		1 << 20, 5<<20 + 12345, 127 << 20, 128 << 20, 129 << 20, 133 << 20, 1 << 30, 16 << 30,
		100<<30 + 4096,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "img")
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := errors.Join(f.Truncate(int64(size)), Format(f, Options{
				Bytes: size, ID: [16]byte{1, 2, 3, 15: 9},
				Seed: [16]byte{7}, Mode: 0o2777, Time: 1e9,
			})); err != nil {
				t.Fatal(err)
			}
			out, _ := exec.CommandContext(t.Context(), fsck, "-fn", name).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				switch l := strings.TrimSpace(line); {
				case l == "", strings.HasPrefix(l, "e2fsck "), strings.HasPrefix(l, "Pass "),
					strings.HasPrefix(l, "/lost+found not found."), strings.Contains(l, " files ("),
					strings.HasSuffix(l, "WARNING: Filesystem still has errors ********"):
				default:
					t.Errorf("e2fsck says: %s", l)
				}
			}
			if st, err := os.Stat(name); err != nil || st.Size() != int64(size) {
				t.Errorf("the image has %v", st)
			}
		})
	}
}

func TestFormatRefusesWhatIsTooSmall(t *testing.T) {
	if err := Format(nil, Options{Bytes: 1<<20 - 1}); err == nil {
		t.Error("Format() of less than 1 MiB succeeded")
	}
}
