// This file answers: is the Workload API closed to calls without its security
// header, and what does a caller with the right header get?
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const securityHeader = "workload.spiffe.io"

// headerTrials are the metadata values sent; nil sends no header at all.
var headerTrials = []struct {
	name  string
	value []string
	right bool
}{
	{"none", nil, false},
	{"false", []string{"false"}, false},
	{"empty", []string{""}, false},
	{"upper case", []string{"TRUE"}, false},
	{"true", []string{"true"}, true},
}

type deniedLine struct {
	Method  string `json:"method"`
	Header  string `json:"header"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func runExpectDenied(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("expect-denied", flag.ContinueOnError)
	expect := flags.String("expect", "", "code FetchX509SVID must answer when the header is right, such as OK, PermissionDenied or Unavailable; empty accepts any")
	expectMessage := flags.String("expect-message", "", "message that must come with it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	address, ok := os.LookupEnv(workloadapi.SocketEnv)
	if !ok {
		return fmt.Errorf("%s is not set", workloadapi.SocketEnv)
	}
	target, err := workloadapi.TargetFromAddress(address)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()

	var faults []error
	for _, method := range workloadMethods(workload.NewSpiffeWorkloadAPIClient(conn)) {
		for _, trial := range headerTrials {
			got, err := tryHeader(ctx, method, trial.value)
			if err != nil {
				return err
			}
			if err := emit(deniedLine{method.name, trial.name, got.Code().String(), got.Message()}); err != nil {
				return err
			}
			fault := func(format string, args ...any) {
				faults = append(faults, fmt.Errorf(method.name+" with header "+trial.name+": "+format, args...))
			}
			switch {
			case !trial.right && got.Code() != codes.InvalidArgument:
				fault("expected InvalidArgument, got %s", got.Code())
			case trial.right && method.name == "FetchX509SVID" && *expect != "" && got.Code().String() != *expect:
				fault("expected %s, got %s: %s", *expect, got.Code(), got.Message())
			case trial.right && method.name == "FetchX509SVID" && *expectMessage != "" && got.Message() != *expectMessage:
				fault("expected message %q, got %q", *expectMessage, got.Message())
			}
		}
	}
	return errors.Join(faults...)
}

type workloadMethod struct {
	name string
	call func(ctx context.Context) error
}

func workloadMethods(client workload.SpiffeWorkloadAPIClient) []workloadMethod {
	return []workloadMethod{
		{"FetchX509SVID", func(ctx context.Context) error {
			return first(client.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))
		}},
		{"FetchX509Bundles", func(ctx context.Context) error {
			return first(client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
		}},
		{"FetchJWTSVID", func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"interop"}})
			return err
		}},
		{"FetchJWTBundles", func(ctx context.Context) error {
			return first(client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{}))
		}},
		{"ValidateJWTSVID", func(ctx context.Context) error {
			_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "interop", Svid: "not.a.token"})
			return err
		}},
	}
}

// first waits for the first message of a stream.
func first[Response any](stream grpc.ServerStreamingClient[Response], err error) error {
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	if errors.Is(err, io.EOF) {
		return status.Error(codes.Unknown, "the stream ended without a message")
	}
	return err
}

func tryHeader(ctx context.Context, method workloadMethod, values []string) (*status.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for _, value := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, securityHeader, value)
	}
	got, ok := status.FromError(method.call(ctx))
	if !ok {
		return nil, errors.New("the call failed without a gRPC status")
	}
	return got, nil
}
