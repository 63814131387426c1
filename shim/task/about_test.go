// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"testing"
)

func TestAnErrorNamesItsContainerOnce(t *testing.T) {
	for text, want := range map[string]string{
		`no such file`: `create c1: no such file`,
		`create container c1: exec: "x": no such`:   `create container c1: exec: "x": no such`,
		`create pod c1, network: no`:                `create pod c1, network: no`,
		`start process x of container c1`:           `start process x of container c1`,
		`container c12 is stopped`:                  `create c1: container c12 is stopped`,
		`create pod c`:                              `create c1: create pod c`,
		`storage c1 is gone, as all of container c`: `create c1: storage c1 is gone, as all of container c`,
	} {
		cause := errors.New(text)
		if err := about("c1", cause, "create %s", "c1"); err.Error() != want || !errors.Is(err, cause) {
			t.Errorf("%q = %q, want %q", text, err, want)
		}
	}
}
