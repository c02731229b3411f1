// Written by `phi-edge bundle`. ExecuTorch's LlmModule behind the same interface as the other targets.
package com.example.phiedge

import java.io.File
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmModule

/**
 * An opened artifact; one request at a time, on a thread that may block. [folder] is where the app has unpacked the
 * files of `model/`. Sampling is greedy: LlmModule has no top-k, top-p or seed.
 */
class PhiEdge(folder: File) : AutoCloseable {
    private val module = LlmModule(
        LlmModule.MODEL_TYPE_TEXT,
        File(folder, "model.pte").path,
        File(folder, "tokenizer.json").path,
        0.0f
    )
    @Volatile private var cancelled = false

    init {
        try {
            module.load()
        } catch (failure: ExecutorchRuntimeException) {
            module.close()
            throw IllegalStateException(
                "ExecuTorch cannot load the model or tokenizer.json: are all files of model/ there, and can this " +
                    "library read the tokenizer (README.md)?",
                failure
            )
        }
    }

    /**
     * Gives the answer's text piece by piece to [onText], and returns how it ended. The runner reports pieces, not
     * tokens: a character that is made of several tokens counts as one.
     */
    fun generate(request: Request, onText: (String) -> Unit): Done {
        require(request.maxNewTokens >= 1) { "maxNewTokens is ${request.maxNewTokens}; give 1 or more" }
        val prompt = Chat.prompt(request.messages)
        // The runner prints a stop id's text, and does not look whether its first token is one: both end here.
        val scanner = StopScanner(request.stop + Artifact.END_TOKENS)
        var tokens = 0
        var error: String? = null
        cancelled = false
        // Nothing of an earlier answer is kept: positions would drift.
        module.resetContext()
        val callback = object : LlmCallback {
            override fun onResult(result: String) {
                if (scanner.found != null || tokens >= request.maxNewTokens) return
                tokens++
                val shown = scanner.add(result)
                if (shown.isNotEmpty()) onText(shown)
                if (scanner.found != null || tokens >= request.maxNewTokens || cancelled) module.stop()
            }

            override fun onStats(stats: String) = Unit

            override fun onError(errorCode: Int, message: String) {
                error = "ExecuTorch error $errorCode: $message"
            }
        }
        // seqLen counts the prompt too, and the other overload drops its maxNewTokens: so tokens are counted above.
        try {
            module.generate(prompt, Artifact.CONTEXT_TOKENS, callback, false)
        } catch (failure: ExecutorchRuntimeException) {
            if (error == null) error = failure.message
        }
        val found = scanner.found
        if (found == null) scanner.rest().let { if (it.isNotEmpty()) onText(it) }
        return when {
            error != null -> Done(Finish.ERROR, tokens, error = error)
            found in Artifact.END_TOKENS -> Done(Finish.EOS, tokens - 1)
            found != null -> Done(Finish.STOP, tokens, stopString = found)
            cancelled -> Done(Finish.CANCELLED, tokens)
            else -> Done(Finish.LENGTH, tokens)
        }
    }

    /** Ends the running answer within one token. May be called from any thread. */
    fun cancel() {
        cancelled = true
        module.stop()
    }

    override fun close() = module.close()
}
