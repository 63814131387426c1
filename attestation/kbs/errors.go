// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/coco-shim/coco/internal/strictjson"
)

// ErrorType names an error of the protocol.
type ErrorType string

// Errors that brokers answer with, by the names of Trustee.
const (
	AdminAuthAccess    ErrorType = "AdminAuthAccess"
	AttestationError   ErrorType = "AttestationError"
	InvalidRequestPath ErrorType = "InvalidRequestPath"
	JWEError           ErrorType = "JweError"
	ParsePolicyError   ErrorType = "ParsePolicyError"
	PluginInternal     ErrorType = "PluginInternalError"
	PluginNotFound     ErrorType = "PluginNotFound"
	PolicyDeny         ErrorType = "PolicyDeny"
	PolicyEngineError  ErrorType = "PolicyEngineError"
	ReferenceError     ErrorType = "RvpsError"
	SerdeError         ErrorType = "SerdeError"
	TokenNotFound      ErrorType = "TokenNotFound"
	TokenVerifierError ErrorType = "TokenVerifierError" //nolint:gosec // the name of an error
	HTTPFailed         ErrorType = "HTTPFailed"
)

const errorPrefix = "https://github.com/confidential-containers/kbs/errors/"

// Error is what a broker answers instead of a result.
type Error struct {
	Type   ErrorType
	Detail string
	// Status is that of the HTTP answer. Trustee answers nearly all errors with 401, so that Type decides first.
	Status int
}

// Error returns the error for people.
func (e *Error) Error() string {
	return fmt.Sprintf("the broker answers %d %s: %s", e.Status, e.Type, e.Detail)
}

// MarshalJSON writes the body of the answer.
func (e *Error) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Type   string `json:"type"`
		Detail string `json:"detail"`
	}{errorPrefix + string(e.Type), e.Detail})
}

// maxDetail bounds what is kept of a broker's words.
const maxDetail = 1024

// ParseError reads the body of an answer. A body that is not of the protocol gives an error without a type.
func ParseError(status int, body []byte) *Error {
	e := &Error{Status: status}
	m, err := strictjson.Parse(body)
	var name string
	if err != nil || m.Text("type", &name) != nil || m.Text("detail", &e.Detail) != nil {
		return &Error{Status: status, Detail: "no message of the protocol"}
	}
	if short, ok := strings.CutPrefix(name, errorPrefix); ok && typeName.MatchString(short) {
		e.Type = ErrorType(short)
	}
	if len(e.Detail) > maxDetail {
		e.Detail = strings.ToValidUTF8(e.Detail[:maxDetail], "") + "…"
	}
	return e
}

var typeName = regexp.MustCompile(`^[A-Za-z]{1,64}$`)

// segment is one of the three parts of a resource's path.
var segment = regexp.MustCompile(`^[A-Za-z0-9_-]+[A-Za-z0-9_.-]*$`)

// maxPath bounds the path of a resource.
const maxPath = 512

// ParsePath reads the path of a resource: repository, type and tag. A leading slash, and "kbs://" with or without an
// address, are left out; the address of a URI is not used.
func ParsePath(text string) (string, error) {
	path := text
	if rest, ok := strings.CutPrefix(text, "kbs://"); ok {
		_, rest, ok = strings.Cut(rest, "/")
		if !ok {
			return "", fmt.Errorf("%.80q is no URI such as kbs:///repository/type/tag", text)
		}
		path = rest
	}
	path = strings.TrimPrefix(path, "/")
	parts := strings.Split(path, "/")
	ok := len(parts) == 3 && len(path) <= maxPath
	for _, p := range parts {
		ok = ok && segment.MatchString(p)
	}
	if !ok {
		return "", fmt.Errorf("%.80q is no path of a resource such as repository/type/tag", text)
	}
	return path, nil
}
